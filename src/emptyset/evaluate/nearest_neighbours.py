"""How near made images are to real ones: each one's nearest neighbour, in pixels and features."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emptyset.errors import ImagesError
from emptyset.evaluate.small_pixels import small_pixels
from emptyset.evaluate.teacher_features import TeacherFeatures
from emptyset.images.folder import LazyImages
from emptyset.images.image_source import Images
from emptyset.monitor import SILENT, Monitor
from emptyset.teachers.teacher import Teacher

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95)
# Made images below this quantile of what lies between real ones are counted.
CLOSE = 0.01
LARGEST_SIDE = 64
# Elements of a block in double precision: 128 MB, and as many for its distances.
BLOCK_ELEMENTS, MOST_ROWS = 1 << 24, 4096


@dataclass(frozen=True)
class ClosestPairs:
    """Made images that lie nearest to a real one, nearest first.

    Attributes:
        distances: ``(P,)``.
        images: ``(P,)`` number of the made image in its source, from 0.
        real: ``(P,)`` number of its nearest real image in theirs.
        tiles: ``(P, C, h, w)`` uint8: the made images.
        real_tiles: ``(P, C, h, w)`` uint8: the real ones.
    """

    distances: Tensor
    images: Tensor
    real: Tensor
    tiles: Tensor
    real_tiles: Tensor


@dataclass(frozen=True)
class Neighbours:
    """Distances to the nearest real image, in one space.

    Attributes:
        to_real: Of made images, one per ``QUANTILES``.
        between_real: Of real images to another one (leave one out), one per ``QUANTILES``.
        close: The 1 % quantile of ``between_real``.
        closer: Share of the made images that lie nearer than ``close``, 0..1; of real images it is
            about 1 %.
        closest: The nearest pairs.
    """

    to_real: tuple[float, ...]
    between_real: tuple[float, ...]
    close: float
    closer: float
    closest: ClosestPairs

    def to_json(self) -> dict[str, Any]:
        """JSON data; quantiles by their number."""
        names = [f"{q:g}" for q in QUANTILES]
        pairs = zip(
            self.closest.images.tolist(),
            self.closest.real.tolist(),
            self.closest.distances.tolist(),
            strict=True,
        )
        return {
            "to_real": dict(zip(names, self.to_real, strict=True)),
            "between_real": dict(zip(names, self.between_real, strict=True)),
            "close": self.close,
            "closer": self.closer,
            "closest": [{"image": i, "real": r, "distance": d} for i, r, d in pairs],
        }


@dataclass(frozen=True)
class NearestNeighbours:
    """What was found in both spaces.

    Attributes:
        count: Made images.
        real_count: Real images.
        pixels: Root mean square difference of pixels from 0, black, to 1, white.
        features: Euclidean distance of the teacher's features [feature units].
        pixel_size: ``(h, w)`` at which pixels were compared: at most 64 a side.
        feature_kind: ``penultimate``, or ``logits`` for a network without a last linear layer.
    """

    count: int
    real_count: int
    pixels: Neighbours
    features: Neighbours
    pixel_size: tuple[int, int]
    feature_kind: str

    def to_json(self) -> dict[str, Any]:
        """JSON data."""
        return {
            "count": self.count,
            "real_count": self.real_count,
            "pixels": self.pixels.to_json(),
            "features": self.features.to_json(),
            "pixel_size": list(self.pixel_size),
            "feature_kind": self.feature_kind,
        }


@dataclass(frozen=True)
class _Kept:
    """What is kept of a set: at most 12 kB of pixels and the features, per image."""

    pixels: Tensor
    features: Tensor
    places: Tensor


def require_counts(made: int, real: int) -> None:
    """Check that there is something to compare.

    Raises:
        ImagesError: If there is no image, or fewer than 2 real ones.
    """
    if made < 1 or real < 2:
        raise ImagesError(
            "Nearest neighbours need at least 1 made image and 2 real ones, to tell how near real "
            f"ones are to each other. Got {made} and {real}."
        )


@torch.no_grad()
def nearest_neighbours(
    images: Images,
    real: Images,
    teacher: Teacher,
    *,
    closest: int = 8,
    batch_size: int = 256,
    monitor: Monitor = SILENT,
) -> NearestNeighbours:
    """The nearest real image of every made one, beside the same between real images.

    Pixels are compared as 8-bit picture files of at most 64 pixels a side would hold them. Every
    image is read once; distances are computed block by block in double precision, never all at
    once. The time grows with both counts' product, and with that of the real ones with themselves.

    Args:
        images: Made images, in the teacher's normalised units.
        real: Real ones, best those that the teacher was trained on; at least 2.
        teacher: Sees the features.
        closest: Number of nearest pairs to tell, in each space.
        batch_size: Images in one forward.
        monitor: Hears of progress, keeps what was found.

    Raises:
        ImagesError: If there is no image, or fewer than 2 real ones.
        UnsupportedModelError: If the teacher is no classifier.
    """
    require_counts(len(images), len(real))
    reader = TeacherFeatures(teacher, batch_size=batch_size)
    made = _read(images, reader, teacher, batch_size, "features of the images", monitor)
    others = _read(real, reader, teacher, batch_size, "features of real images", monitor)
    device = teacher.example(1).device
    # Apple's GPUs have no double precision.
    device = device if device.type == "cuda" else torch.device("cpu")

    def compared(space: str, vectors: Callable[[_Kept], Tensor], unit: float) -> Neighbours:
        of_made, of_real = vectors(made), vectors(others)
        found = nearest(of_made, of_real, device=device, name=f"{space} to real", monitor=monitor)
        between, _ = nearest(
            of_real, of_real, own=True, device=device, name=f"{space} among real", monitor=monitor
        )
        return _told(found[0] / unit, found[1], between / unit, made, others, closest)

    sizes = made.pixels.shape[1:]
    whole = 255.0 * sizes.numel() ** 0.5
    return NearestNeighbours(
        count=len(made.pixels),
        real_count=len(others.pixels),
        pixels=compared("pixels", lambda kept: kept.pixels.flatten(1), whole),
        features=compared("features", lambda kept: kept.features, 1.0),
        pixel_size=(int(sizes[1]), int(sizes[2])),
        feature_kind=reader.kind,
    )


def nearest(
    queries_ND: Tensor,
    references_MD: Tensor,
    *,
    own: bool = False,
    device: torch.device | None = None,
    name: str = "nearest neighbours",
    monitor: Monitor = SILENT,
) -> tuple[Tensor, Tensor]:
    """Euclidean distance to the nearest reference, and which it is.

    A block of queries meets a block of references at a time, as one matrix product in double
    precision: exact for 8-bit pixels. The distance of the nearest is then computed again from the
    two themselves, so that equal vectors have a distance of exactly 0.

    Args:
        queries_ND: ``(N, D)``, any type.
        references_MD: ``(M, D)``; at least 2 where ``own``, else 1.
        own: Both are the same set, and nothing is its own neighbour.
        device: Where to compute.
        name: For the monitor.
        monitor: Hears of progress, keeps what was found.

    Returns:
        ``(N,)`` double and ``(N,)`` index of the reference, the first of equally near ones; on the
        CPU.
    """
    rows = max(1, min(MOST_ROWS, BLOCK_ELEMENTS // queries_ND.shape[1]))
    distances = torch.empty(len(queries_ND), dtype=torch.double)
    indices = torch.empty(len(queries_ND), dtype=torch.long)
    kept, done = monitor.restore(f"nearest.{name}"), 0
    if kept is not None:
        distances, indices = kept["distances"].clone(), kept["indices"].clone()
        done = int(kept["done"])
    for start in range(done, len(queries_ND), rows):
        part = slice(start, start + rows)
        found = _nearest_of_block(queries_ND[part], references_MD, start, rows, own, device)
        distances[part], indices[part] = found
        done = min(start + rows, len(queries_ND))
        state = {"distances": distances, "indices": indices, "done": torch.tensor(done)}
        monitor.keep(f"nearest.{name}", lambda state=state: state)  # type: ignore[misc]
        monitor.advance(name, done, len(queries_ND))
    return distances, indices


def _nearest_of_block(
    queries: Tensor, references: Tensor, first: int, rows: int, own: bool, device: Any
) -> tuple[Tensor, Tensor]:
    ours = queries.to(device).double()
    best = torch.full((len(ours),), torch.inf, dtype=torch.double, device=ours.device)
    which = torch.zeros(len(ours), dtype=torch.long, device=ours.device)
    for start in range(0, len(references), rows):
        theirs = references[start : start + rows].to(device).double()
        squares = theirs.square().sum(dim=1) - 2 * (ours @ theirs.T)
        if own and start == first:
            squares.fill_diagonal_(torch.inf)
        values, places = squares.min(dim=1)
        better = values < best
        best = torch.where(better, values, best)
        which = torch.where(better, places + start, which)
    which = which.cpu()
    gaps = queries.double() - references[which].double()
    return gaps.norm(dim=1).cpu(), which


def _read(
    images: Images,
    reader: TeacherFeatures,
    teacher: Teacher,
    batch_size: int,
    name: str,
    monitor: Monitor,
) -> _Kept:
    pixels, features, done = [], [], 0
    for batch in images.batches(batch_size):
        pixels.append(small_pixels(batch.images.cpu(), teacher.input, LARGEST_SIDE))
        features.append(reader.of(batch.images).features)
        done += len(batch.images)
        monitor.advance(name, done, len(images))
    places = images.indices if isinstance(images, LazyImages) else torch.arange(done)
    return _Kept(torch.cat(pixels), torch.cat(features), places)


def _told(
    to_real: Tensor, which: Tensor, between: Tensor, made: _Kept, others: _Kept, closest: int
) -> Neighbours:
    close = between.quantile(CLOSE)
    order = to_real.argsort(stable=True)[:closest]
    pairs = ClosestPairs(
        to_real[order],
        made.places[order],
        others.places[which[order]],
        made.pixels[order],
        others.pixels[which[order]],
    )
    wanted = torch.tensor(QUANTILES, dtype=torch.double)
    return Neighbours(
        to_real=tuple(to_real.quantile(wanted).tolist()),
        between_real=tuple(between.quantile(wanted).tolist()),
        close=close.item(),
        closer=(to_real < close).double().mean().item(),
        closest=pairs,
    )
