"""What a network expects of its images."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class InputSpec:
    """What the teacher's forward expects: ``(pixel - mean) / std``, RGB pixels in 0..1.

    Attributes:
        shape: ``(C, H, W)`` [pixels].
        mean: Per channel [pixel units, 0..1].
        std: Per channel [pixel units, 0..1].
        resize: Shorter side before the centre crop when a photo is loaded [pixels]; None:
            the photo is resized to ``(H, W)`` directly.
        interpolation: ``bilinear`` or ``bicubic``.
    """

    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None
    interpolation: str = "bilinear"

    def normalise(self, pixels: Tensor) -> Tensor:
        """``(N, C, H, W)`` pixels in 0..1 to the teacher's normalised units."""
        mean, std = self._mean_and_std(pixels)
        return (pixels - mean) / std

    def pixels(self, images: Tensor) -> Tensor:
        """The inverse of ``normalise``, clipped to 0..1 (for viewing)."""
        mean, std = self._mean_and_std(images)
        return (images * std + mean).clamp(0, 1)

    def pixel_range(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest value that any image can have, 0-dim [normalised units]."""
        mean, std = (torch.tensor(values, dtype=torch.double) for values in (self.mean, self.std))
        return ((0 - mean) / std).min(), ((1 - mean) / std).max()

    def _mean_and_std(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Both as ``(C, 1, 1)``, where the images are and as precise as they are."""
        mean, std = (
            torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)
            for values in (self.mean, self.std)
        )
        return mean, std
