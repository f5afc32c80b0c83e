"""Gaussian noise: the null hypothesis, never chosen unless asked for by name.

Source: ours; the baseline that the data-free literature compares with.
Needs: nothing of the teacher but its input shape.
"""

from dataclasses import asdict, dataclass

import torch

from emptyset.images.image_set import ImageSet
from emptyset.images.low_pass import low_pass
from emptyset.inversion.batch_plan import require_count
from emptyset.inversion.setting_checks import require_positive
from emptyset.inversion.standard_units import standard_units
from emptyset.monitor import SILENT, Monitor
from emptyset.registry import synthesizers
from emptyset.teachers.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """Settings of the noise.

    Attributes:
        spread: Standard deviation, before the filter [standardised pixel units].
        low_pass: Cut-off of SynQ's filter over the noise [cycles per image], or null.
    """

    spread: float = 1.0
    low_pass: float | None = None

    def __post_init__(self) -> None:
        require_positive(self, "spread")
        if self.low_pass is not None:
            require_positive(self, "low_pass")

    @classmethod
    def smallest(cls) -> "NoiseConfig":
        """The same: there is nothing to shrink."""
        return cls()


@synthesizers.register(
    "noise",
    NoiseConfig,
    sentence="Gaussian noise that has not seen the teacher; a baseline, not for use.",
    source="ours",
)
@dataclass(frozen=True)
class Noise:
    """See the module docstring."""

    config: NoiseConfig

    def synthesize(
        self, teacher: Teacher, count: int, *, seed: int, monitor: Monitor = SILENT
    ) -> ImageSet:
        """Exactly ``count`` images of noise.

        Raises:
            ImagesError: If fewer than 2 images are asked for.
        """
        require_count("noise", count)
        generator = torch.Generator().manual_seed(seed)
        noise = self.config.spread * torch.randn(count, *teacher.input.shape, generator=generator)
        if self.config.low_pass is not None:
            noise = low_pass(noise, self.config.low_pass)
        units = standard_units(teacher.input)
        entry = {
            "stage": "synthesize",
            "method": "noise",
            "settings": asdict(self.config),
            "seed": seed,
            "teacher": teacher.weights_hash,
            "teacher_name": teacher.public_name,
            "mean": list(teacher.input.mean),
            "std": list(teacher.input.std),
            "count": count,
            "compiled": False,
            "dtype": "float32",
        }
        return ImageSet(units.to_teacher(noise), history=(entry,))
