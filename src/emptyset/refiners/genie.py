"""Genie-M: rounding and scales of a block's weights and activations, learnt together.

Paper: Jeon et al., "Genie: Show Me the Data for Quantization", CVPR 2023, arXiv:2212.04780;
    settings of the released code.
Idea: the codes rounded down are taken once, from the first scale, and kept; then the scale can be
    learnt beside the rounding, as the weight is ``s · (clip(base + h(V) + z) − z)``. Inputs are
    mixed, element by element, from those of the float and the quantized network, and every
    activation quantizer is left out at random for half of its elements (QDrop).
Needs: images (1,024 in the paper); calibrated ranges, set here where there are none.
Differs from source:
    * Published rates have the units of a weight that BatchNorm is not folded into. Where it is
      folded (plan `integer`; ``batch_norm: fold``), a channel's scale may be a thousand times
      smaller or larger, so scales are learnt relatively there, with rates of ours.
    * Activations keep the zero point of calibration (released: symmetric); behind a ReLU that is
      the same.
    * An activation is learnt in the block that gives it. Where shortcuts are quantized, the
      released code learns the one that a shortcut and its block's first layer share in the block
      that reads it; at 1,500 steps that changed nothing here (tried once: w2a4, ResNet-20).
    * First ranges come from the refiner `calibrate`: the same 100 factors and exponent, over all
      its images and of what the float network gives (released: 32 images of the quantized prefix);
      where activations have both signs, each end is searched by itself; 8 bits take the extremes.
    * An epoch's rest goes into the next epoch's first batch, so any number of images will do.
"""

from dataclasses import dataclass

from emptyset.graph.student import Student
from emptyset.inversion.setting_checks import require_choice, require_not_negative, require_share
from emptyset.reconstruction.config import Course, ReconstructionConfig
from emptyset.refiners.block_by_block import BlockByBlock
from emptyset.registry import refiners

UNITS = ("auto", "absolute", "relative")


@dataclass(frozen=True, kw_only=True)
class GenieConfig(ReconstructionConfig):
    """Settings of Genie-M. Defaults are those of the released code unless marked ours.

    Attributes:
        weight_scale_learning_rate: Of weight scales, falling to 0 in a cosine (absolute: 1e-4;
            relative, ours: 1e-3).
        activation_scale_learning_rate: Of activation scales (absolute: 4e-5; relative, ours: 1e-3).
        scale_rates: Whether these are ``absolute`` [units of x] or ``relative`` to the first scale;
            ``auto``: relative where BatchNorm is folded. Ours.
        kept: Share of elements that stay quantized while learning, in inputs and in quantizers.
    """

    penalty: float = 1.0
    weight_scale_learning_rate: float | None = None
    activation_scale_learning_rate: float | None = None
    scale_rates: str = "auto"
    kept: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, "scale_rates", UNITS)
        require_share(self, "kept")
        for name in ("weight_scale_learning_rate", "activation_scale_learning_rate"):
            if getattr(self, name) is not None:
                require_not_negative(self, name)

    @classmethod
    def smallest(cls) -> "GenieConfig":
        """Settings that finish in a blink; the contract tests run these."""
        return cls(steps=3, batch_size=4, check_every=2)

    def course(self, student: Student) -> Course:
        """What these settings come to for a student."""
        relative = self.scale_rates == "relative" or (
            self.scale_rates == "auto" and student.batch_norm == "fold"
        )
        weights, activations = self.weight_scale_learning_rate, self.activation_scale_learning_rate
        if weights is None:
            weights = 1e-3 if relative else 1e-4
        if activations is None:
            activations = 1e-3 if relative else 4e-5
        return Course(
            name="genie",
            config=self,
            steps=self.steps,
            weight_scale_rate=weights,
            activation_scale_rate=activations,
            relative_scales=relative,
            inputs="mixed",
            kept=self.kept,
            mask="value",
            order="epochs",
        )


@refiners.register(
    "genie",
    GenieConfig,
    sentence="Learns rounding and scales of each block together (Genie-M).",
    source="Genie, Jeon et al. 2023, arXiv:2212.04780",
)
@dataclass(frozen=True)
class Genie(BlockByBlock):
    """See the module docstring."""

    config: GenieConfig

    def courses(self, student: Student) -> list[Course]:
        """See the settings."""
        return [self.config.course(student)]
