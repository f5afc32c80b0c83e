"""The page ``report.html``: one file that needs no network, for a screen of any width."""

import json
import math
from pathlib import Path
from typing import Any

from torch.nn import functional

from emptyset.errors import MissingExtraError
from emptyset.images.image_set import ImageSet
from emptyset.report.facts import headline, milliseconds, percent, result_rows, size
from emptyset.report.png import data_address
from emptyset.teachers.teacher import InputSpec

TEMPLATE = Path(__file__).parent / "templates" / "report.html"
LARGEST_TILE = 96
MOST_TILES = 48


def write_page(path: Path, metrics: dict[str, Any], images: ImageSet, spec: InputSpec) -> None:
    """Write the page, aside and renamed.

    Args:
        path: The file.
        metrics: What ``metrics.json`` holds.
        images: Some of the images that the student was fitted to.
        spec: Turns them back into pixels.

    Raises:
        MissingExtraError: If ``emptyset[report]`` is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtraError(
            'The report needs jinja2. Install it: pip install "emptyset[report]".'
        ) from error
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "percent": percent,
        "size": size,
        "milliseconds": milliseconds,
        "decibel": _decibel,
        "span": _span,
        "small": _small,
    }
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = template.render(
        metrics=metrics,
        rows=result_rows(metrics),
        headline=headline(metrics),
        tiles=_tiles(images, spec),
        layers=_layers(metrics["layers"]),
        noise=metrics["images"]["source"] == "noise",
        history=[_entry(entry) for entry in metrics["images"]["history"]],
        certificate=_flat(metrics["certificate"]),
    )
    aside = path.with_name(f".{path.name}.part")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _tiles(images: ImageSet, spec: InputSpec) -> list[str]:
    pixels = spec.pixels(images.images[:MOST_TILES])
    height, width = pixels.shape[2:]
    if max(height, width) > LARGEST_TILE:
        shrink = LARGEST_TILE / max(height, width)
        smaller = (max(1, round(height * shrink)), max(1, round(width * shrink)))
        pixels = functional.interpolate(pixels, smaller, mode="area")
    return [data_address(tile) for tile in pixels]


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
            lines.append((name, _small(value)))
        elif value is not None:
            lines.append((name, value if isinstance(value, str) else json.dumps(value)))
    return lines


def _decibel(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} dB"


def _span(value: tuple[float, float] | None) -> str:
    return "float" if value is None else f"{value[0]:.3g} … {value[1]:.3g}"


def _small(value: float) -> str:
    if value == 0 or not math.isfinite(value):
        return str(value if not math.isfinite(value) else 0)
    return f"{value:.3g}" if abs(value) < 1e-3 or abs(value) >= 1e4 else f"{value:.4g}"
