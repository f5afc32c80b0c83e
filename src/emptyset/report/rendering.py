"""Templates to pages: one file each, which loads nothing from anywhere."""

import math
from pathlib import Path
from typing import Any

from emptyset.errors import MissingExtraError, RunFolderError
from emptyset.report.facts import milliseconds, percent, size

TEMPLATES = Path(__file__).parent / "templates"


def write_template(name: str, path: Path, values: dict[str, Any]) -> None:
    """Fill in a template and write it, aside and renamed.

    Args:
        name: File name of the template.
        path: The page.
        values: What the template speaks of; a name that it misses is an error.

    Raises:
        MissingExtraError: If ``emptyset[report]`` is not installed.
        RunFolderError: If the page's name is that of a folder.
    """
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtraError(
            'The report needs jinja2. Install it: pip install "emptyset[report]".'
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "percent": percent,
        "size": size,
        "milliseconds": milliseconds,
        "decibel": decibel,
        "span": span,
        "small": small,
    }
    text = environment.get_template(name).render(values)
    if path.is_dir():
        raise RunFolderError(f"{path}: there is a folder of this name. Give the name of a file.")
    aside = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def decibel(value: float | None) -> str:
    """``31.42`` as ``31.4 dB``; a dash where nothing was lost."""
    return "–" if value is None else f"{value:.1f} dB"


def span(value: tuple[float, float] | None) -> str:
    """A range of values, or ``float`` where there is none."""
    return "float" if value is None else f"{value[0]:.3g} … {value[1]:.3g}"


def small(value: float) -> str:
    """Three or four significant digits, for numbers of any size."""
    if value == 0 or not math.isfinite(value):
        return str(value if not math.isfinite(value) else 0)
    return f"{value:.3g}" if abs(value) < 1e-3 or abs(value) >= 1e4 else f"{value:.4g}"
