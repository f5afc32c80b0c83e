"""Pictures of a generator, drawn: samples in feature space, the way between classes, images.

Figures 3 to 6 of Qimera, Choi et al. 2021, arXiv:2111.02625, for any generator.
"""

import importlib.util
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emptyset.errors import MissingExtraError
from emptyset.evaluate.pictured_samples import (
    UNKNOWN,
    ClassPath,
    FeatureMap,
    GeneratorPictures,
    Points,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

DPI = 110
GREY, BLACK = "#8a949e", "#111111"
PANEL = 4.2
# Inches of a tile in a grid.
TILE = 0.55


@dataclass(frozen=True)
class Figure:
    """One picture.

    Attributes:
        name: Of its file, without ending.
        title: In a few words.
        caption: How to read it.
        png: The picture.
    """

    name: str
    title: str
    caption: str
    png: bytes


def generator_figures(pictures: GeneratorPictures) -> list[Figure]:
    """Draw what there is; nothing is drawn that was not measured.

    Args:
        pictures: From ``generator_pictures``.

    Raises:
        MissingExtraError: If ``emptyset[report]`` is not installed.
    """
    _require_matplotlib()
    found = []
    if pictures.feature_map is not None:
        found.append(_map_figure(pictures, pictures.feature_map))
    if pictures.class_path is not None:
        found.append(_path_figure(pictures, pictures.class_path))
        found.append(_strip_figure(pictures, pictures.class_path))
    return [*found, _grid_figure(pictures)]


def write_figures(folder: Path, pictures: GeneratorPictures) -> list[Path]:
    """Write every picture as a PNG file, aside and renamed.

    Args:
        folder: Made where it is missing.
        pictures: From ``generator_pictures``.

    Returns:
        The files: ``feature_map.png``, ``class_path.png``, ``class_path_images.png``,
        ``images.png``, as far as there is something to show.

    Raises:
        MissingExtraError: If ``emptyset[report]`` is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for figure in generator_figures(pictures):
        path = folder / f"{figure.name}.png"
        aside = folder / f".{path.name}.part"
        try:
            aside.write_bytes(figure.png)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        paths.append(path)
    return paths


def _require_matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError(
            'Pictures need matplotlib. Install it: pip install "emptyset[report]".'
        )


def _map_figure(pictures: GeneratorPictures, shown: FeatureMap) -> Figure:
    """The same axes for every kind of samples."""
    panels: list[tuple[str, list[Points]]] = []
    if shown.real is not None:
        panels.append(("real", [shown.real]))
    panels.append(("generated, one class each", [shown.generated]))
    if shown.superposed is not None:
        panels.append(("and superposed, two classes each", [shown.generated, shown.superposed]))
    canvas = _canvas(PANEL * len(panels), PANEL + 0.6)
    colours = _colours(shown)
    first = None
    for number, (title, points) in enumerate(panels):
        axes = canvas.add_subplot(1, len(panels), number + 1, sharex=first, sharey=first)
        first = first or axes
        axes.set_title(title, fontsize=10)
        for index, some in enumerate(points):
            # Later kinds lie on top.
            _scatter(axes, some, colours, unknown=BLACK if index else GREY)
        _label_axes(axes, shown.explained, shown.basis)
    _legend(canvas, pictures, colours, superposed=shown.superposed is not None)
    coloured = "what the teacher says" if shown.predicted else "the class asked for"
    caption = (
        f"Principal components of the {_features(pictures)}, fitted to the {shown.basis} images; "
        f"all panels share this basis. Generated images are coloured by {coloured}."
    )
    if shown.superposed is not None:
        caption += " Black dots show two classes at once."
    return Figure("feature_map", "Samples in feature space", caption, _png(canvas))


def _path_figure(pictures: GeneratorPictures, way: ClassPath) -> Figure:
    canvas = _canvas(1.6 * PANEL, PANEL + 0.4)
    axes = canvas.add_subplot(1, 1, 1)
    first, second = (pictures.name_of(label) for label in way.pair)
    palette = dict(zip(way.pair, ("#1f77b4", "#d95f02"), strict=True))
    _scatter(axes, way.around, palette, unknown=GREY)
    stops = torch.linspace(0, len(way.superposed) - 1, way.tiles.shape[1]).round().long()
    for places, colour, name, style in (
        (way.mixup, GREY, "Mixup of both ends", "--"),
        (way.superposed, BLACK, "superposed embeddings", "-"),
    ):
        axes.plot(places[:, 0], places[:, 1], style, color=colour, linewidth=1.2, label=name)
        axes.scatter(places[stops, 0], places[stops, 1], s=28, color=colour, zorder=3)
    for label in way.pair:
        axes.scatter([], [], s=12, color=palette[label], label=pictures.name_of(label))
    _label_axes(axes, way.explained, way.basis)
    axes.legend(fontsize=8, framealpha=0.7)
    caption = (
        f"Equal steps of λ, dots at 0 (class {first}), 0.1, 0.2 and so on to 1 (class {second}). "
        f"Principal components of the {_features(pictures)} of {way.basis} images of these two "
        "classes. The straighter the way, the nearer the distance ratio is to 1."
    )
    return Figure(
        "class_path", f"The way from class {first} to class {second}", caption, _png(canvas)
    )


def _strip_figure(pictures: GeneratorPictures, way: ClassPath) -> Figure:
    first, second = (pictures.name_of(label) for label in way.pair)
    shares = [f"{share:.1f}" for share in torch.linspace(0, 1, way.tiles.shape[1]).tolist()]
    png = _tiles(way.tiles, ["superposed", "Mixup"], shares)
    caption = f"Class {first} at λ = 0, class {second} at λ = 1. Both rows have the same ends."
    return Figure("class_path_images", f"Images from class {first} to class {second}", caption, png)


def _grid_figure(pictures: GeneratorPictures) -> Figure:
    labels = pictures.grid.classes.tolist()
    known = UNKNOWN not in labels
    names = [pictures.name_of(label) if known else "" for label in labels]
    rows = "Each row shows one class." if known else "These images were made without labels."
    caption = f"Images that {pictures.method} makes, as they come. {rows}"
    return Figure("images", "Generated images", caption, _tiles(pictures.grid.tiles, names, []))


def _tiles(tiles_RNCHW: Tensor, rows: list[str], columns: list[str]) -> bytes:
    """Tiles in rows, with names beside the rows and above the columns."""
    count, each, channels, height, width = tiles_RNCHW.shape
    shown = tiles_RNCHW if channels in (1, 3) else tiles_RNCHW[:, :, :1]
    whole = shown.permute(0, 3, 1, 4, 2).reshape(count * height, each * width, -1)
    canvas = _canvas(TILE * each * width / height + 1.2, TILE * count + 0.4)
    axes = canvas.add_subplot(1, 1, 1)
    axes.imshow(whole.expand(-1, -1, 3).numpy(), interpolation="nearest")
    for line in range(1, count):
        axes.axhline(line * height - 0.5, color="white", linewidth=1)
    for line in range(1, each):
        axes.axvline(line * width - 0.5, color="white", linewidth=1)
    axes.set_yticks([(row + 0.5) * height - 0.5 for row in range(count)], rows, fontsize=8)
    axes.set_xticks([(n + 0.5) * width - 0.5 for n in range(len(columns))], columns, fontsize=8)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    return _png(canvas)


def _canvas(width: float, height: float) -> "Canvas":
    # Without pyplot: no window, no global state.
    from matplotlib.figure import Figure as Canvas

    return Canvas(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def _png(canvas: "Canvas") -> bytes:
    stream = io.BytesIO()
    # The version of matplotlib would make equal pictures differ.
    canvas.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _colours(shown: FeatureMap) -> dict[int, Any]:
    """A colour per class that occurs."""
    import matplotlib as mpl

    kinds = [shown.generated, *([shown.real] if shown.real is not None else [])]
    labels = sorted({label for kind in kinds for label in kind.classes.tolist()} - {UNKNOWN})
    palette = mpl.colormaps["tab10" if len(labels) <= 10 else "tab20"]
    return {label: palette(index % palette.N) for index, label in enumerate(labels)}


def _scatter(axes: "Axes", points: Points, colours: dict[int, Any], *, unknown: str) -> None:
    shades = [colours.get(label, unknown) for label in points.classes.tolist()]
    x, y = points.places[:, 0].numpy(), points.places[:, 1].numpy()
    axes.scatter(x, y, s=5, c=shades, linewidths=0, alpha=0.65)


def _label_axes(axes: "Axes", explained: tuple[float, float], basis: str) -> None:
    axes.set_xlabel(f"1st component, {100 * explained[0]:.0f} % of {basis}", fontsize=8)
    axes.set_ylabel(f"2nd component, {100 * explained[1]:.0f} %", fontsize=8)
    axes.tick_params(labelsize=7)


def _legend(
    canvas: "Canvas", pictures: GeneratorPictures, colours: dict[int, Any], *, superposed: bool
) -> None:
    from matplotlib.lines import Line2D

    entries = [(pictures.name_of(label), colour) for label, colour in colours.items()]
    entries += [("two classes", BLACK)] if superposed else []
    dots = [
        Line2D([], [], linestyle="", marker="o", markersize=4, color=colour, label=name)
        for name, colour in entries
    ]
    canvas.legend(handles=dots, loc="outside lower center", ncols=min(len(dots), 11), fontsize=7)


def _features(pictures: GeneratorPictures) -> str:
    return "teacher's last features" if pictures.features == "penultimate" else "teacher's logits"
