"""Genie-D: images through a small generator of their own, latents and weights optimised together.

Paper: Jeon et al., "Genie: Show Me the Data for Quantization", CVPR 2023, arXiv:2212.04780;
    settings of the released code.
Idea: a fresh generator per batch shares what its images have in common; strided convolutions of the
    teacher see their input shifted at random (swing convolution), so that their grid leaves no
    pattern.
Needs: a teacher with BatchNorm layers. No labels.
Differs from source:
    * The code calls the latents' step size ``lr_g`` and the generator's ``lr_z``; here numbers are
      followed, names are not.
    * Swing convolution is a hook on the engine's private copy of the teacher; no layer is replaced.
    * Any size of image; the code is for 224 pixels. Settings for other sizes are not published.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from emptyset.generators.latent_upsampler import WEIGHTS, LatentUpsampler
from emptyset.inversion.config import PlateauConfig
from emptyset.inversion.method import Draw, Group, Method, Seen
from emptyset.inversion.schedules import Staircase
from emptyset.inversion.setting_checks import (
    require_not_negative,
    require_positive,
)
from emptyset.inversion.swing import draw_offsets, strided_convolutions
from emptyset.inversion.synthesizer import InversionSynthesizer
from emptyset.inversion.updates import Adam
from emptyset.losses.batch_norm_statistics import genie_statistics, zeroq_statistics
from emptyset.losses.layer_statistics import input_statistics
from emptyset.registry import synthesizers
from emptyset.teachers.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class GenieDConfig(PlateauConfig):
    """Settings of Genie-D. Defaults are those of the released code.

    Attributes:
        latent_learning_rate: First step size of the latents.
        plateau_minimum: Its lower limit.
        generator_learning_rate: First step size of the generator's weights.
        generator_decay: What it is multiplied by,
        generator_decay_every: every so many steps.
        latent: Length of a latent.
        widths: Channels of the generator's two stages.
        input_weight: Of the statistics of the images themselves.
        swing: Shift what strided convolutions see.
        batch_size: Most images of one generator.
    """

    steps: int = 4000
    latent_learning_rate: float = 0.1
    plateau_patience: int = 100
    generator_learning_rate: float = 0.01
    generator_decay: float = 0.95
    generator_decay_every: int = 100
    latent: int = 256
    widths: tuple[int, int] = (128, 64)
    input_weight: float = 1.0
    swing: bool = True
    batch_size: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "latent_learning_rate", "generator_learning_rate")
        require_positive(self, "generator_decay", "generator_decay_every", "latent")
        require_not_negative(self, "input_weight")
        if min(self.widths) < 1:
            raise ValueError(f"'widths' must be positive. Got {self.widths}.")

    @classmethod
    def smallest(cls) -> "GenieDConfig":
        """Settings that finish in a blink."""
        return cls(steps=3, batch_size=4, latent=6, widths=(4, 3))


@synthesizers.register(
    "genie_d",
    GenieDConfig,
    sentence="A small generator per batch, optimised with its latents; strided convolutions swing.",
    source="Genie, Jeon et al. 2023, arXiv:2212.04780",
)
@dataclass(frozen=True)
class GenieD(InversionSynthesizer):
    """See the module docstring."""

    config: GenieDConfig

    def method(self, teacher: Teacher) -> Method:
        """The parts that the engine runs."""
        config = self.config
        latents = config.plateau(config.latent_learning_rate)
        weights = Staircase(
            config.generator_learning_rate, config.generator_decay, config.generator_decay_every
        )
        strided = len(strided_convolutions(teacher.module)) if config.swing else 0
        return Method(
            name="genie_d",
            objective=self.objective,
            groups=(Group(Adam(), latents), *[Group(Adam(), weights)] * WEIGHTS),
            steps=config.steps,
            batch_size=config.batch_size,
            canvas=LatentUpsampler(teacher.input.shape[1:], config.latent, config.widths),
            draw=_draw_swing(strided) if strided else None,
            swing=strided > 0,
            low_pass=config.low_pass,
            joint_steps=config.turn,
        )

    def objective(self, seen: Seen) -> Tensor:
        """Distance of the BatchNorm inputs' statistics, and of the images' own, from the stored.

        loss = D(BatchNorm inputs; batch) + input_weight · D(images; each image, mean 0, std 1)
        """
        loss = genie_statistics(seen.layers)
        if self.config.input_weight:
            images = zeroq_statistics([input_statistics(seen.images)])
            loss = loss + self.config.input_weight * images
        return loss


def _draw_swing(convolutions: int) -> Draw:
    def draw(_step: int, generator: torch.Generator, _count: int) -> dict[str, Tensor]:
        return {"swing": draw_offsets(convolutions, generator)}

    return draw
