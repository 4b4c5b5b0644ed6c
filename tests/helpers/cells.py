"""Test ids of combinations of settings."""


def cell_id(cell: dict) -> str:
    return "-".join(str(v).replace(" ", "") for v in cell.values())
