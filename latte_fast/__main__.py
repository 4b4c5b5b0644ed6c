"""Runs the `latte-fast` command as `python -m latte_fast` or `torchrun -m latte_fast`."""

from latte_fast.cli import main

# spawned processes import this module again
if __name__ == "__main__":
    main()
