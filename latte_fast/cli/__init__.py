"""The `latte-fast` command; one file a subcommand."""

import sys

from latte_fast import __version__


def main() -> None:
    """Runs the subcommand that was asked for; imported only then, so that one of them needs only its own packages."""
    if sys.argv[1:] == ["--version"]:
        print(f"latte_fast {__version__}")
        return
    from latte_fast.cli.commands import run

    run()
