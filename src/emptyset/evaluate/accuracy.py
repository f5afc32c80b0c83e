"""Top-1 and top-5 on labelled images."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from emptyset.errors import ImagesError
from emptyset.images.image_source import Images
from emptyset.monitor import SILENT, Monitor

Predict = Callable[[Tensor], Tensor]
"""``(N, C, H, W)`` images in normalised units to ``(N, K)`` logits."""


@dataclass(frozen=True)
class Accuracy:
    """How often the right class is the first, or among the first five.

    Attributes:
        top1: Share of the images, 0..1.
        top5: Share of the images, 0..1; None where there are five classes or fewer.
        count: Number of images.
        classes: Of the network, K.
    """

    top1: float
    top5: float | None
    count: int
    classes: int

    def no_better_than_chance(self) -> bool:
        """Whether guessing evenly is right as often, within three standard errors."""
        chance = 1 / self.classes
        return self.top1 <= chance + 3 * math.sqrt(chance * (1 - chance) / self.count)

    def to_json(self) -> dict[str, Any]:
        """JSON data."""
        return asdict(self)


@torch.no_grad()
def accuracy(
    predict: Predict, images: Images, *, batch_size: int = 256, monitor: Monitor = SILENT
) -> Accuracy:
    """Top-1 and top-5 of a network; memory does not grow with the number of images.

    An image counts as right where no other class has a higher logit and, among equal logits, the
    right class has the lowest index: a network that always says the same earns nothing from ties.

    Args:
        predict: The network.
        images: Images with labels ``(N,)``.
        batch_size: Images at a time.
        monitor: Hears of progress.

    Raises:
        ImagesError: If there are no images, labels are missing, or a label is no class of the
            network.
    """
    right = within_five = count = classes = 0
    for batch in images.batches(batch_size):
        labels = batch.targets
        if labels is None or labels.dim() != 1 or labels.is_floating_point():
            raise ImagesError(
                "Accuracy needs one class index per image. Give a folder with one subfolder per "
                "class or an .npz with 'labels', or measure agreement with the teacher instead."
            )
        logits = predict(batch.images)
        require_logits(logits, len(batch.images))
        labels, classes = labels.to(logits.device), logits.shape[1]
        if int(labels.min()) < 0 or int(labels.max()) >= classes:
            raise ImagesError(
                f"Labels run from {int(labels.min())} to {int(labels.max())}, but the network has "
                f"{classes} classes (0 to {classes - 1})."
            )
        rank_N = rank_of_label(logits, labels)
        right += int((rank_N < 1).sum())
        within_five += int((rank_N < 5).sum())
        count += len(labels)
        monitor.advance("accuracy", count, len(images))
    if count == 0:
        raise ImagesError("Accuracy needs at least one image. Got none.")
    return Accuracy(right / count, within_five / count if classes > 5 else None, count, classes)


def rank_of_label(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """How many classes come before the labelled one, ``(N,)``; NaN logits come before all."""
    own_N1 = logits_NK.gather(1, labels_N[:, None])
    before = torch.arange(logits_NK.shape[1], device=logits_NK.device) < labels_N[:, None]
    above = (logits_NK > own_N1) | logits_NK.isnan() | own_N1.isnan()
    return (above | ((logits_NK == own_N1) & before)).sum(dim=1)


def require_logits(logits: Tensor, count: int) -> None:
    """Refuse outputs that are no ``(N, K)`` logits.

    Raises:
        ImagesError: If the shape is another.
    """
    if logits.dim() != 2 or len(logits) != count:
        raise ImagesError(
            f"Expected logits of shape ({count}, K) for {count} images. Got "
            f"{tuple(logits.shape)}: the network is no classifier."
        )
