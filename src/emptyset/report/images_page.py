"""The pages about images alone: a comparison of methods, and one set beside real images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emptyset.evaluate.nearest_neighbours import NearestNeighbours
from emptyset.report.comparison_table import comparison_table, facts, notes
from emptyset.report.contact_sheet import ContactSheet
from emptyset.report.neighbours import neighbour_section
from emptyset.report.quality import quality_rows
from emptyset.report.rendering import write_template


def write_comparison_page(
    path: Path, result: dict[str, Any], sheets: Mapping[str, ContactSheet]
) -> None:
    """Write ``compare.html``: the table, and what the images of each row look like.

    Args:
        path: The file.
        result: What ``compare.json`` holds.
        sheets: Contact sheet per row.

    Raises:
        MissingExtraError: If ``emptyset[report]`` is not installed.
    """
    write_template(
        "comparison.html",
        path,
        {
            "result": result,
            "table": comparison_table(result),
            "facts": facts(result),
            "notes": notes(result),
            "sheets": [(name, sheet.groups(), sheet.count) for name, sheet in sheets.items()],
        },
    )


def write_quality_page(
    path: Path,
    result: dict[str, Any],
    sheet: ContactSheet,
    nearest: NearestNeighbours | None = None,
) -> None:
    """Write the page of ``emptyset evaluate IMAGES``: what was measured, and a contact sheet.

    Args:
        path: The file.
        result: What the command prints as JSON.
        sheet: Of the images, real ones beside them.
        nearest: The nearest real image of each, where there are real ones.

    Raises:
        MissingExtraError: If ``emptyset[report]`` is not installed.
    """
    sets = {name: result[name] for name in ("images", "real") if result.get(name)}
    write_template(
        "images.html",
        path,
        {
            "result": result,
            "rows": quality_rows(sets),
            "sets": list(sets),
            "groups": sheet.groups(),
            "shown": len(sheet.images.pixels),
            "nearest": None if nearest is None else neighbour_section(nearest),
        },
    )
