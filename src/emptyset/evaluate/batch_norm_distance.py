"""How far the statistics that images cause are from those that the teacher stored."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from emptyset.errors import ImagesError, UnsupportedModelError
from emptyset.images.image_set import Batch
from emptyset.images.image_source import Images
from emptyset.inversion.frozen_teacher import FrozenTeacher
from emptyset.losses.layer_statistics import LayerStatistics
from emptyset.monitor import SILENT, Monitor
from emptyset.teachers.teacher import Teacher


@dataclass(frozen=True)
class BatchNormDistance:
    """Distance of batches of images from the stored statistics, over batches of one size.

    Attributes:
        sum_l2: Σ_layers ‖m − μ‖₂ + ‖s − σ‖₂, mean over the batches [feature units].
        sum_l2_spread: Its standard deviation over the batches; None for a single batch.
        mean_mse: Mean over layers of the mean over channels of (m − μ)² + (s − σ)² [squared].
        mean_mse_spread: Its standard deviation over the batches; None for a single batch.
        batch_size: Images of a batch; both numbers depend on it.
        count: Images used.
    """

    sum_l2: float
    sum_l2_spread: float | None
    mean_mse: float
    mean_mse_spread: float | None
    batch_size: int
    count: int

    def to_json(self) -> dict[str, Any]:
        """JSON data."""
        return asdict(self)


@torch.no_grad()
def batch_norm_distance(
    images: Images,
    teacher: Teacher,
    *,
    batch_size: int = 256,
    variance: bool = False,
    monitor: Monitor = SILENT,
) -> BatchNormDistance:
    """Measure images, made or real, at the inputs of the teacher's BatchNorm layers.

    A last batch that is smaller than the others is left out, as small batches are further away.

    Args:
        images: In the teacher's normalised units.
        teacher: With BatchNorm2d layers.
        batch_size: Images of a batch.
        variance: Compare variances instead of standard deviations.
        monitor: Hears of progress.

    Raises:
        UnsupportedModelError: If the teacher has no BatchNorm2d layers.
        ImagesError: If there are fewer than 2 images.

    Source:
        GenQ, Li et al. 2024, arXiv:2312.05272, section 3.4 and table 1b, whose text says variance
        and whose symbols say standard deviation; its numbers can only be averages over channels
        and layers, hence the second form.
    """
    if not teacher.stored_batch_norms():
        raise UnsupportedModelError(
            f"{teacher.name} has no BatchNorm2d layer that stores statistics to compare with."
        )
    if len(images) < 2:
        raise ImagesError(f"Statistics need at least 2 images. Got {len(images)}.")
    size = min(batch_size, len(images))
    frozen = FrozenTeacher(teacher)
    sums, means, done = [], [], 0
    for batch in _whole_batches(images, size):
        own_units = batch.images.to(frozen.device)
        layers = frozen.look(frozen.units.from_teacher(own_units)).layers
        found = [_gaps(layer, variance) for layer in layers]
        sums.append(sum(norm for norm, _ in found))
        means.append(sum(square for _, square in found) / len(found))
        done += size
        monitor.advance("BatchNorm distance", done, len(images))
    return BatchNormDistance(
        sum_l2=_mean(sums),
        sum_l2_spread=_spread(sums),
        mean_mse=_mean(means),
        mean_mse_spread=_spread(means),
        batch_size=size,
        count=done,
    )


def _whole_batches(images: Images, size: int) -> Iterator[Batch]:
    for batch in images.batches(size):
        if len(batch.images) == size:
            yield batch


def _gaps(layer: LayerStatistics, variance: bool) -> tuple[float, float]:
    """Sum of both norms, and mean over channels of both squares."""
    mean_gap = layer.batch_shift()
    found, stored = layer.batch_variance(correction=0), layer.stored_var
    spread_gap = found - stored if variance else found.sqrt() - stored.sqrt()
    norms = mean_gap.norm() + spread_gap.norm()
    squares = mean_gap.square().mean() + spread_gap.square().mean()
    return norms.item(), squares.item()


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _spread(values: list[float]) -> float | None:
    if len(values) < 2:
        return None
    return torch.tensor(values, dtype=torch.double).std().item()
