"""Names of the cells of a product of settings."""


def cell_id(cell: dict) -> str:
    return "-".join(str(v).replace(" ", "") for v in cell.values())
