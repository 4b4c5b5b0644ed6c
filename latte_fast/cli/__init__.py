"""The `latte-fast` command: one file for each subcommand, which main.py imports when it is called."""

from latte_fast.cli.main import main

__all__ = ["main"]
