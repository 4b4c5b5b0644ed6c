"""`python -m latte_fast` and `torchrun -m latte_fast`: the command where no script of it is on the path."""

from latte_fast.cli import main

# processes that are spawned import this module again
if __name__ == "__main__":
    main()
