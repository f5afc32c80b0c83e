"""The page ``report.html``: one file that needs no network, for a screen of any width."""

import json
from pathlib import Path
from typing import Any

from emptyset.evaluate.pictured_samples import GeneratorPictures
from emptyset.report.contact_sheet import ContactSheet
from emptyset.report.facts import described_bits, headline, result_rows
from emptyset.report.generator_section import generator_section
from emptyset.report.pareto import layer_rows, pareto_chart, plan_rows
from emptyset.report.quality import quality_rows
from emptyset.report.reconstruction_table import block_tables
from emptyset.report.rendering import small, write_template


def write_page(
    path: Path,
    metrics: dict[str, Any],
    sheet: ContactSheet,
    pictures: GeneratorPictures | None = None,
) -> None:
    """Write the page, aside and renamed.

    Args:
        path: The file.
        metrics: What ``metrics.json`` holds.
        sheet: Small pictures of the images that the student was fitted to.
        pictures: Of the generator that was trained beside the student, where there was one.

    Raises:
        MissingExtraError: If ``emptyset[report]`` is not installed.
    """
    quality = _measured_sets(metrics)
    write_template(
        "report.html",
        path,
        {
            "metrics": metrics,
            "bits": described_bits(metrics),
            "blocks": block_tables(metrics.get("training", [])),
            "mixed": _mixed(metrics.get("mixed_precision")),
            "rows": result_rows(metrics),
            "headline": headline(metrics),
            "groups": sheet.groups(),
            "shown": len(sheet.images.pixels),
            "quality": quality_rows(quality),
            "quality_sets": list(quality),
            "generator": _generator(metrics.get("class_boundary"), pictures),
            "layers": _layers(metrics["layers"]),
            "noise": metrics["images"]["source"] == "noise",
            "history": [_entry(entry) for entry in metrics["images"]["history"]],
            "certificate": _flat(metrics["certificate"]),
        },
    )


def _measured_sets(metrics: dict[str, Any]) -> dict[str, Any]:
    """What was measured of the images, by what they are called; nothing in old runs."""
    found = metrics.get("image_quality") or {}
    names = {"images": metrics["images"]["source"], "real": "real"}
    return {names[kind]: quality for kind, quality in found.items() if quality}


def _generator(
    boundary: dict[str, Any] | None, pictures: GeneratorPictures | None
) -> dict[str, Any] | None:
    """What the section on the generator shows; None where there was none."""
    if boundary is None and pictures is None:
        return None
    return generator_section(boundary, pictures)


def _mixed(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the section on mixed precision shows; None where no bits were chosen."""
    if not found:
        return None
    widths, rows = layer_rows(found)
    return {
        "found": found,
        "chart": pareto_chart(found),
        "plans": plan_rows(found),
        "widths": widths,
        "rows": rows,
    }


def _layers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The layer table, with a bar from 0 to 100 for the damage."""
    worst = max((row["damage"] for row in rows), default=0.0)
    return [row | {"bar": 100 * row["damage"] / worst if worst > 0 else 0.0} for row in rows]


def _entry(entry: dict[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    """One step of the images' history: its title, and its facts as texts."""
    title = " · ".join(str(entry[key]) for key in ("stage", "method") if key in entry)
    rest = {key: value for key, value in entry.items() if key not in ("stage", "method")}
    # Settings come without the prefix of their section.
    settings = rest.pop("settings", {})
    return title, _flat(rest) + _flat(settings)


def _flat(data: dict[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Nested facts as lines; long lists and tables stay in the JSON files."""
    lines: list[tuple[str, str]] = []
    for key, value in data.items():
        name = f"{before}{key}".replace("_", " ")
        if isinstance(value, dict):
            lines += _flat(value, f"{name}: ")
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            lines.append((name, f"{len(value)} entries, see the JSON file"))
        elif isinstance(value, float):
            lines.append((name, small(value)))
        elif value is not None:
            lines.append((name, value if isinstance(value, str) else json.dumps(value)))
    return lines
