"""The `latte-fast` command: one file a subcommand, found by main.py."""

from latte_fast.cli.main import main

__all__ = ["main"]
