"""The `latte-fast` command; one file a subcommand."""


def main() -> None:
    """Runs the subcommand that was asked for; imported only then, so that one of them needs only its own packages."""
    from latte_fast.cli.commands import run

    run()
