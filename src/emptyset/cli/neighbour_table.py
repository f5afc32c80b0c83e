"""Distances to the nearest real image, in the terminal."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def neighbour_table(found: dict[str, Any]) -> "Table":
    """Quantiles in pixels and in features, of made images and of real ones.

    Args:
        found: What ``NearestNeighbours.to_json`` gives.
    """
    from rich import box
    from rich.table import Table

    from emptyset.report.neighbours import neighbour_rows

    title = "distance to the nearest real image"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("")
    table.add_column("image to real", justify="right")
    table.add_column("real to real", justify="right")
    table.add_column("", overflow="fold")
    for row in neighbour_rows(found):
        table.add_row(row.name, row.made, row.real, row.remark)
    return table
