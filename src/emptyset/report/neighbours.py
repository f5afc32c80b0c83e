"""How near made images are to real ones: the rows for terminal and page, and the nearest pairs."""

from dataclasses import dataclass
from typing import Any

from emptyset.evaluate.nearest_neighbours import ClosestPairs, NearestNeighbours
from emptyset.report.facts import percent
from emptyset.report.png import data_address
from emptyset.report.rendering import small

_SPACES = {
    "pixels": ("pixels", "root mean square difference, from 0, black, to 1, white"),
    "features": ("features", "Euclidean distance in the teacher's features"),
}


@dataclass(frozen=True)
class NeighbourRow:
    """One quantile, or one share, in one space.

    Attributes:
        name: What was measured.
        made: Of made images to their nearest real one.
        real: Of real images to their nearest other real one.
        remark: How to read it.
    """

    name: str
    made: str
    real: str
    remark: str


@dataclass(frozen=True)
class NearestPair:
    """A made image and its nearest real one.

    Attributes:
        image: ``data:`` address.
        real: The same of the real image.
        caption: Which they are, and how far apart.
    """

    image: str
    real: str
    caption: str


def neighbour_rows(found: dict[str, Any]) -> list[NeighbourRow]:
    """Quantiles and shares in both spaces.

    Args:
        found: What ``NearestNeighbours.to_json`` gives.
    """
    rows = []
    for space, (name, unit) in _SPACES.items():
        told = found[space]
        for index, (quantile, value) in enumerate(told["to_real"].items()):
            label = "nearest" if quantile == "0" else f"{100 * float(quantile):g} %"
            remark = unit if index == 0 else ""
            between = told["between_real"][quantile]
            rows.append(NeighbourRow(f"{name}, {label}", small(value), small(between), remark))
        remark = "images nearer to a real one than 99 % of the real ones are to each other"
        rows.append(NeighbourRow(f"{name}, closer", percent(told["closer"]), "about 1 %", remark))
    return rows


def nearest_pairs(found: NearestNeighbours) -> dict[str, list[NearestPair]]:
    """Small pictures of the nearest pairs, by the space in which they are near."""
    return {"pixels": _pairs(found.pixels.closest), "features": _pairs(found.features.closest)}


def neighbour_section(found: NearestNeighbours) -> dict[str, Any]:
    """What the template of the section is given.

    Args:
        found: What was measured.
    """
    return {
        "rows": neighbour_rows(found.to_json()),
        "pairs": nearest_pairs(found),
        "pixel_size": found.pixel_size,
    }


def _pairs(closest: ClosestPairs) -> list[NearestPair]:
    rows = zip(
        closest.images.tolist(), closest.real.tolist(), closest.distances.tolist(), strict=True
    )
    return [
        NearestPair(
            data_address(tile / 255),
            data_address(real_tile / 255),
            f"image {image}, real {real}: {small(distance)}",
        )
        for (image, real, distance), tile, real_tile in zip(
            rows, closest.tiles, closest.real_tiles, strict=True
        )
    ]
