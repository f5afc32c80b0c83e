"""Standardised pixel units, in which images are optimised, and the teacher's own.

In standardised units the data have mean 0 and standard deviation 1 per channel, so that a step
size or a start from Gaussian noise means the same for every teacher.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from emptyset.teachers.teacher import InputSpec

# Natural photographs; about the mean of ImageNet's and CIFAR's constants.
PHOTO_MEAN, PHOTO_STD = 0.45, 0.25

# What training data can have. A teacher whose constants lie outside was given them as a mere
# change of scale: (0, 1), (0, 1/255) or (0.5, 0.5).
_MEANS, _STDS = (0.05, 0.95), (0.05, 0.45)


@dataclass(frozen=True)
class StandardUnits:
    """``teacher's units = scale · standardised + offset``, per channel.

    Attributes:
        mean: Pixel mean taken for the data, per channel [pixel units, 0..1].
        std: Pixel standard deviation taken for the data [pixel units, 0..1].
        scale: Per channel [teacher's units per standardised unit].
        offset: Per channel [teacher's units].
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: tuple[float, ...]
    offset: tuple[float, ...]

    def to_teacher(self, images_NCHW: Tensor) -> Tensor:
        """``(N, C, H, W)`` standardised to the teacher's normalised units."""
        if all(s == 1.0 for s in self.scale) and not any(self.offset):
            return images_NCHW
        scale, offset = self._as_columns(images_NCHW, self.scale, self.offset)
        return images_NCHW * scale + offset

    def from_teacher(self, images_NCHW: Tensor) -> Tensor:
        """``(N, C, H, W)`` in the teacher's normalised units to standardised ones."""
        if all(s == 1.0 for s in self.scale) and not any(self.offset):
            return images_NCHW
        scale, offset = self._as_columns(images_NCHW, self.scale, self.offset)
        return (images_NCHW - offset) / scale

    def from_other(self, images_NCHW: Tensor, other: "StandardUnits") -> Tensor:
        """``(N, C, H, W)`` standardised with another teacher's constants to these."""
        if (self.mean, self.std) == (other.mean, other.std):
            return images_NCHW
        mean, std, own_mean, own_std = self._as_columns(
            images_NCHW, other.mean, other.std, self.mean, self.std
        )
        return (images_NCHW * std + mean - own_mean) / own_std

    def pixel_range(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Black and white per channel [standardised pixel units]."""
        pairs = list(zip(self.mean, self.std, strict=True))
        return tuple(-m / s for m, s in pairs), tuple((1 - m) / s for m, s in pairs)

    @staticmethod
    def _as_columns(images: Tensor, *values: tuple[float, ...]) -> list[Tensor]:
        return [
            torch.tensor(v, dtype=images.dtype, device=images.device).view(-1, 1, 1) for v in values
        ]


def standard_units(spec: InputSpec) -> StandardUnits:
    """The units in which images for this teacher are optimised.

    The teacher's own mean and standard deviation are taken for those of the data where they can
    be that (every mean in 0.05..0.95, every standard deviation in 0.05..0.45); the map is then the
    identity. Otherwise the data are taken to be photographs: pixel mean 0.45, standard deviation
    0.25.
    """
    own = all(_MEANS[0] <= m <= _MEANS[1] for m in spec.mean) and all(
        _STDS[0] <= s <= _STDS[1] for s in spec.std
    )
    count = len(spec.mean)
    if own:
        return StandardUnits(spec.mean, spec.std, (1.0,) * count, (0.0,) * count)
    return StandardUnits(
        (PHOTO_MEAN,) * count,
        (PHOTO_STD,) * count,
        tuple(PHOTO_STD / s for s in spec.std),
        tuple((PHOTO_MEAN - m) / s for m, s in zip(spec.mean, spec.std, strict=True)),
    )
