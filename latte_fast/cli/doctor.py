"""latte-fast doctor."""

from latte_fast import info


def doctor() -> None:
    """Print versions, GPU, how the extension was built, and which backend serves each op, and why not."""
    print(info.report())
