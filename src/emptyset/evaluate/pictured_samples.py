"""What the pictures of a generator show, as numbers: kept in one file, drawn by the report."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from emptyset.errors import RunFolderError

UNKNOWN = -1


@dataclass(frozen=True)
class Points:
    """Samples in a plane.

    Attributes:
        places: ``(N, 2)`` float32 [standard deviations along the axes].
        classes: ``(N,)`` class index; −1 where it is not known, or where a sample shows several.
    """

    places: Tensor
    classes: Tensor


@dataclass(frozen=True)
class FeatureMap:
    """Samples of several kinds in one basis.

    Attributes:
        generated: Images of one class each.
        superposed: Images of two classes each; None where the generator takes no labels.
        real: Real images; None where none were given.
        basis: ``real`` or ``generated``: what the basis was fitted to.
        explained: Share of the variance along each axis, of what the basis was fitted to.
        predicted: Whether the classes of generated images are those that the teacher says, since
            they were made without labels.
    """

    generated: Points
    superposed: Points | None
    real: Points | None
    basis: str
    explained: tuple[float, float]
    predicted: bool = False


@dataclass(frozen=True)
class ClassPath:
    """From one class to another, in a basis of these two classes alone.

    Attributes:
        pair: The classes.
        superposed: ``(T, 2)``, in equal steps of λ from 0 to 1.
        mixup: ``(T, 2)``: the images at its ends, mixed pixel by pixel.
        around: Samples of both classes that the basis was fitted to.
        basis: ``real`` or ``generated``: what these are.
        explained: As of ``FeatureMap``.
        tiles: ``(2, M, C, h, w)`` uint8: M images of the way, superposed and Mixup.
    """

    pair: tuple[int, int]
    superposed: Tensor
    mixup: Tensor
    around: Points
    basis: str
    explained: tuple[float, float]
    tiles: Tensor


@dataclass(frozen=True)
class Grid:
    """Generated images, class by class.

    Attributes:
        tiles: ``(R, n, C, h, w)`` uint8, n images in each of R rows.
        classes: ``(R,)`` class of a row; −1: no class in particular.
    """

    tiles: Tensor
    classes: Tensor


@dataclass(frozen=True)
class GeneratorPictures:
    """All that is pictured of a generator.

    Attributes:
        method: Name of the source.
        features: ``penultimate`` or ``logits``.
        grid: Its images.
        feature_map: Samples in one basis; None where it cannot be drawn.
        class_path: The way between two classes; None where it cannot be drawn.
        class_names: Name per class that is shown; others are shown by their number.
        missing: What is not shown, and why; one sentence each.
    """

    method: str
    features: str
    grid: Grid
    feature_map: FeatureMap | None = None
    class_path: ClassPath | None = None
    class_names: dict[int, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def name_of(self, label: int) -> str:
        """How a class is called."""
        return self.class_names.get(label, f"class {label}")

    def save(self, path: Path) -> None:
        """Write everything as one safetensors file, aside and renamed."""
        tensors = {"grid.tiles": self.grid.tiles, "grid.classes": self.grid.classes}
        about: dict[str, Any] = {
            "method": self.method,
            "features": self.features,
            "class_names": {str(label): name for label, name in self.class_names.items()},
            "missing": list(self.missing),
        }
        if self.feature_map is not None:
            shown = self.feature_map
            for kind in ("generated", "superposed", "real"):
                tensors |= _tensors_of(kind, getattr(shown, kind))
            about["map"] = [shown.basis, list(shown.explained), shown.predicted]
        if self.class_path is not None:
            way = self.class_path
            tensors |= _tensors_of("around", way.around)
            tensors |= {"path.superposed": way.superposed, "path.mixup": way.mixup}
            tensors["path.tiles"] = way.tiles
            about["path"] = [way.basis, list(way.explained), list(way.pair)]
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.part")
        whole = {name: value.contiguous() for name, value in tensors.items()}
        save_file(whole, aside, {"about": json.dumps(about)})
        aside.replace(path)

    @staticmethod
    def load(path: Path) -> "GeneratorPictures":
        """Read what ``save`` wrote.

        Raises:
            RunFolderError: If the file is missing or not readable.
        """
        try:
            with safe_open(path, framework="pt") as stored:
                about = json.loads(stored.metadata()["about"])
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise RunFolderError(
                f"{path}: missing or not readable ({error}). Run the same command again to finish "
                "the run."
            ) from error
        return GeneratorPictures(
            method=about["method"],
            features=about["features"],
            grid=Grid(tensors["grid.tiles"], tensors["grid.classes"]),
            feature_map=_map_of(tensors, about),
            class_path=_path_of(tensors, about),
            class_names={int(label): name for label, name in about["class_names"].items()},
            missing=tuple(about["missing"]),
        )


def _tensors_of(kind: str, points: Points | None) -> dict[str, Tensor]:
    if points is None:
        return {}
    return {f"{kind}.places": points.places.float(), f"{kind}.classes": points.classes}


def _points_of(tensors: dict[str, Tensor], kind: str) -> Points | None:
    places = tensors.get(f"{kind}.places")
    return None if places is None else Points(places, tensors[f"{kind}.classes"])


def _map_of(tensors: dict[str, Tensor], about: dict[str, Any]) -> FeatureMap | None:
    generated = _points_of(tensors, "generated")
    if generated is None:
        return None
    basis, (first, second), predicted = about["map"]
    superposed, real = _points_of(tensors, "superposed"), _points_of(tensors, "real")
    return FeatureMap(generated, superposed, real, basis, (first, second), predicted)


def _path_of(tensors: dict[str, Tensor], about: dict[str, Any]) -> ClassPath | None:
    around = _points_of(tensors, "around")
    if around is None:
        return None
    basis, (one, two), (first, second) = about["path"]
    ways = tensors["path.superposed"], tensors["path.mixup"]
    return ClassPath((first, second), *ways, around, basis, (one, two), tensors["path.tiles"])


def no_class(count: int) -> Tensor:
    """``(count,)`` classes that are not known."""
    return torch.full((count,), UNKNOWN)
