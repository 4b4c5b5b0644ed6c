"""What docs/flexdit.md shows is what the cost model gives."""

from benchmarks.report import flexdit
from latte_fast.flex_config import LAYOUTS, SIDES, density_schedule


def test_table_and_picture_are_the_cost_models() -> None:
    """Made anew by python -m benchmarks.report.flexdit."""
    page = flexdit.PAGE.read_text()
    table = flexdit.table()
    assert flexdit.with_table(page) == page and table in page
    assert table.count("| Latte-") == sum(len(LAYOUTS[d]) for d in (28, 24, 12))
    assert flexdit.PICTURE.read_text() == flexdit.layout_picture()


def test_schedule_of_the_page() -> None:
    assert f"# {density_schedule(10, SIDES)}: one side a step" in flexdit.PAGE.read_text()
