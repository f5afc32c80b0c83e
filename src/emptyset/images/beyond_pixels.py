"""How much of some images lies beyond black and white, where the input of a student ends."""

from collections.abc import Iterable

import torch
from torch import Tensor

from emptyset.images.preprocessing import Preprocessing

# Half a step of 8-bit pixels: what is nearer rounds to black or white.
TOLERANCE = 0.5 / 255
# Ours: below this share the cut pixels hardly matter.
WORTH_TELLING = 0.01


class BeyondPixels:
    """Counts, over batches, the values that no 8-bit image can have."""

    def __init__(self, spec: Preprocessing) -> None:
        self._mean, self._std = (
            torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
            for values in (spec.mean, spec.std)
        )
        self._seen = 0
        self._beyond: Tensor | int = 0

    def look(self, images: Tensor) -> None:
        """Count those of ``(N, C, H, W)`` images [normalised units]."""
        mean, std = self._mean.to(images.device), self._std.to(images.device)
        pixels = images * std + mean
        outside = (pixels < -TOLERANCE) | (pixels > 1 + TOLERANCE)
        self._beyond = self._beyond + outside.sum()
        self._seen += images.numel()

    def share(self) -> float:
        """Of all values seen, 0..1."""
        return float(self._beyond) / max(1, self._seen)

    def warning(self) -> str | None:
        """What to tell whoever goes on with the images, where it is worth telling."""
        if (share := self.share()) < WORTH_TELLING:
            return None
        return (
            f"{share:.0%} of the images' values lie beyond black or white. The input of a "
            "quantized network ends there, so it sees other images than its teacher, and what is "
            "measured on them says little. Methods with a setting 'clip' keep them inside with "
            "clip=true; generators have none."
        )


def beyond_pixels(batches: Iterable[Tensor], spec: Preprocessing) -> BeyondPixels:
    """The count over ``batches``, each ``(N, C, H, W)`` [normalised units]."""
    counted = BeyondPixels(spec)
    for images in batches:
        counted.look(images)
    return counted
