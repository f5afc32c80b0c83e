"""Given images in two parts: one the quantizer is fitted to, one the result is judged on."""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from emptyset.images.image_set import ImageSet

if TYPE_CHECKING:
    from emptyset.images.folder import LazyImages

FEWEST_TO_SPLIT = 10
JUDGED_SHARE = 0.2


def split(
    images: "LazyImages", *, seed: int, limit: int | None = None
) -> "tuple[LazyImages, LazyImages | None]":
    """A part to calibrate with and, where there are enough images, a disjoint one to judge on.

    Args:
        images: All images.
        seed: Decides who is in which part.
        limit: At most this many to calibrate with.

    Returns:
        Both parts, each in the old order; the second is None for fewer than 10 images.
    """
    total = len(images)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    judged = round(total * JUDGED_SHARE) if total >= FEWEST_TO_SPLIT else 0
    # The judged part does not depend on the limit: two runs with other limits can be compared.
    rest = order[judged:][:limit].sort().values
    fitted = replace(images, indices=images.indices[rest])
    if not judged:
        return fitted, None
    return fitted, replace(images, indices=images.indices[order[:judged].sort().values])


def first(images: "ImageSet | LazyImages", count: int) -> ImageSet:
    """At most ``count`` of the images, in memory."""
    if isinstance(images, ImageSet):
        return images.subset(torch.arange(min(count, len(images))))
    return images.image_set(count)
