"""What is told of a generator: one table for the terminal, its own page and a run's report."""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emptyset.evaluate.nearest_neighbours import NearestNeighbours
from emptyset.evaluate.pictured_samples import GeneratorPictures
from emptyset.report.generator_figures import generator_figures
from emptyset.report.neighbours import neighbour_section
from emptyset.report.rendering import small, write_template


@dataclass(frozen=True)
class BoundaryRow:
    """One way from class to class.

    Attributes:
        name: Of the way.
        ratio: Distance ratio and its spread over the pairs.
        intrusion: Intrusion score and its spread.
    """

    name: str
    ratio: str
    intrusion: str


def boundary_rows(found: dict[str, Any]) -> list[BoundaryRow]:
    """Superposed images and Mixup, side by side.

    Args:
        found: What ``ClassBoundary.to_json`` gives.
    """
    names = {"superposed": "superposed embeddings", "mixup": "Mixup of the two images at the ends"}
    return [
        BoundaryRow(
            name, _with_spread(found[kind], "ratio"), _with_spread(found[kind], "intrusion")
        )
        for kind, name in names.items()
    ]


def boundary_note(found: dict[str, Any]) -> str:
    """How the table was measured, in one or two sentences.

    Args:
        found: What ``ClassBoundary.to_json`` gives.
    """
    noise = "without noise"
    if found["noise"] == "drawn":
        noise = f"with one noise for each way, {found['draws']} drawn for each pair"
    features = "last features" if found["features"] == "penultimate" else "logits"
    text = (
        f"{found['pairs']:,} of {found['of_pairs']:,} pairs of classes, {found['steps']} steps of "
        f"λ, {noise}; in the teacher's {features}. Mean ± standard deviation over the pairs."
    )
    if found["without_distance"]:
        text += (
            f" Both ends of {found['without_distance']:,} pairs look the same to the teacher; they "
            "have no distance ratio."
        )
    return text


def drawn_note(result: dict[str, Any]) -> str:
    """Which images were compared with real ones, in one sentence.

    Args:
        result: What ``emptyset evaluate GENERATOR --real DIR`` prints as JSON.
    """
    found = result["neighbours"]
    return (
        f"{found['count']:,} images drawn with seed {result['seed']}, beside "
        f"{found['real_count']:,} real ones of {result['real_path']}."
    )


def generator_section(
    boundary: dict[str, Any] | None, pictures: GeneratorPictures | None
) -> dict[str, Any]:
    """What the template of the section is given.

    Args:
        boundary: What ``ClassBoundary.to_json`` gives, or None.
        pictures: From ``generator_pictures``, or None.

    Raises:
        MissingExtraError: If ``emptyset[report]`` is not installed.
    """
    figures = [] if pictures is None else generator_figures(pictures)
    return {
        "rows": boundary_rows(boundary) if boundary else [],
        "note": boundary_note(boundary) if boundary else "",
        "figures": [
            {
                "title": figure.title,
                "caption": figure.caption,
                "address": "data:image/png;base64," + base64.b64encode(figure.png).decode("ascii"),
            }
            for figure in figures
        ],
        "missing": [] if pictures is None else list(pictures.missing),
    }


def write_generator_page(
    path: Path,
    result: dict[str, Any],
    pictures: GeneratorPictures,
    nearest: NearestNeighbours | None = None,
) -> None:
    """Write the page of ``emptyset evaluate GENERATOR``.

    Args:
        path: The file.
        result: What the command prints as JSON.
        pictures: From ``generator_pictures``.
        nearest: The nearest real image of each drawn one, where there are real ones.

    Raises:
        MissingExtraError: If ``emptyset[report]`` is not installed.
    """
    section = generator_section(result["class_boundary"], pictures)
    shown: dict[str, Any] = {"result": result, "section": section, "nearest": None}
    if nearest is not None:
        shown |= {"nearest": neighbour_section(nearest), "drawn": drawn_note(result)}
    write_template("generator.html", path, shown)


def _with_spread(score: dict[str, Any], name: str) -> str:
    value, spread = score[name], score[f"{name}_spread"]
    return small(value) if spread is None else f"{small(value)} ± {spread:.1g}"
