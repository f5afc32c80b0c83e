"""BRECQ: the rounding of a block's weights first, then the scales of its activations.

Paper: Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction",
    ICLR 2021, arXiv:2102.05426; settings of the released code.
Idea: within a block layers make up for each other's errors, between blocks hardly. Distances of a
    block's outputs may be weighted by how much the answer depends on them (Fisher).
Needs: images (1,024 in the paper); calibrated ranges, set here where there are none.
Differs from source:
    * The paper weighs by the Fisher information; the released default is the plain distance, and so
      is ours.
    * In a block of more than 12 layers these are learnt one by one and not weighted.
    * The stem's and the head's rounding is learnt, too (released: not the stem's).
    * Activation ranges are searched over all of the first images at once, not averaged over
      batches, and where activations have both signs, each end by itself.
    * Ranges are the best of 100 factors from 1 to 0.01 (released: of 80 from 1 to 0.21).
"""

from dataclasses import dataclass

from emptyset.graph.student import Student
from emptyset.inversion.setting_checks import (
    require_choice,
    require_not_negative,
    require_positive,
)
from emptyset.reconstruction.config import WEIGHTINGS, Course, ReconstructionConfig
from emptyset.refiners.block_by_block import BlockByBlock
from emptyset.registry import refiners


@dataclass(frozen=True, kw_only=True)
class BrecqConfig(ReconstructionConfig):
    """Settings of BRECQ. Defaults are those of the released code.

    Attributes:
        penalty: λ; released for MobileNetV2 with 2-bit weights: 0.1.
        weighting: Of the distances of outputs: ``none``, ``fisher`` (the diagonal) or
            ``fisher_full``.
        activation_steps: Optimizer steps of every block's activation scales; 0: they stay as
            calibrated.
        activation_scale_learning_rate: Of activation scales [units of x], to 0 in a cosine (paper:
            4e-5).
        activation_exponent: Of the distance of outputs then.
        activation_images: Images that activation ranges are searched on before they are learnt.
    """

    weighting: str = "none"
    activation_steps: int = 5_000
    activation_scale_learning_rate: float = 4e-4
    activation_exponent: float = 2.4
    activation_images: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, "weighting", WEIGHTINGS)
        require_not_negative(self, "activation_steps", "activation_scale_learning_rate")
        require_positive(self, "activation_exponent", "activation_images")

    @classmethod
    def smallest(cls) -> "BrecqConfig":
        """Settings that finish in a blink; the contract tests run these."""
        return cls(steps=3, activation_steps=3, batch_size=4, check_every=2)

    def courses(self) -> list[Course]:
        """What these settings come to: weights, then activations."""
        weights = Course(
            name="brecq.weights",
            config=self,
            steps=self.steps,
            prefix_activations=False,
            activations=False,
            weighting=self.weighting,
        )
        if self.activation_steps == 0:
            return [weights]
        activations = Course(
            name="brecq.activations",
            config=self,
            steps=self.activation_steps,
            rounding=False,
            activation_scale_rate=self.activation_scale_learning_rate,
            inputs="float",
            exponent=self.activation_exponent,
            search_images=self.activation_images,
        )
        return [weights, activations]


@refiners.register(
    "brecq",
    BrecqConfig,
    sentence="Learns each block's rounding, then its activation scales (BRECQ).",
    source="BRECQ, Li et al. 2021, arXiv:2102.05426",
)
@dataclass(frozen=True)
class Brecq(BlockByBlock):
    """See the module docstring."""

    config: BrecqConfig

    def courses(self, student: Student) -> list[Course]:
        """See the settings."""
        return self.config.courses()
