"""QDrop: rounding and activation scales of a block, learnt while activations are dropped at random.

Paper: Wei et al., "QDrop: Randomly Dropping Quantization for Extremely Low-bit Post-Training
    Quantization", ICLR 2022, arXiv:2203.05740; settings of the released code.
Idea: element by element, an activation is quantized or not, in the block's inputs and in every
    quantizer inside, so that what is learnt is flat around what it will see.
Needs: images (1,024 in the paper); calibrated ranges, set here where there are none.
Differs from source:
    * First ranges come from the refiner `calibrate`, from all its images (released: 256 images for
      activations); both ends of a weight channel are shrunk together (released: also apart), and
      8 bits take the extremes.
    * λ is 0.01 as for ResNets; released for MobileNetV2: 0.1, for MnasNet: 0.2.
    * Zero points stay as calibrated (released: learnt beside the scale, rounded).
    * LSQ's factor of a scale's gradient, ``1 / sqrt(N · Qp)``, takes the steps above zero,
      ``quant_max − z``, for Qp (released: ``quant_max``); behind a ReLU that is the same.
    * A 1 x 1 weight's or a linear's rounding is learnt as any other's; the stem's too.
"""

from dataclasses import dataclass

from emptyset.graph.student import Student
from emptyset.inversion.setting_checks import require_not_negative, require_share
from emptyset.reconstruction.config import Course, ReconstructionConfig
from emptyset.refiners.block_by_block import BlockByBlock
from emptyset.registry import refiners


@dataclass(frozen=True, kw_only=True)
class QDropConfig(ReconstructionConfig):
    """Settings of QDrop. Defaults are those of the released code.

    Attributes:
        activation_scale_learning_rate: Of activation scales [units of x], to 0 in a cosine.
        kept: Share of elements that stay quantized while learning, in inputs and in quantizers.
    """

    activation_scale_learning_rate: float = 4e-5
    kept: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative(self, "activation_scale_learning_rate")
        require_share(self, "kept")

    @classmethod
    def smallest(cls) -> "QDropConfig":
        """Settings that finish in a blink; the contract tests run these."""
        return cls(steps=3, batch_size=4, check_every=2)

    def course(self) -> Course:
        """What these settings come to."""
        return Course(
            name="qdrop",
            config=self,
            steps=self.steps,
            activation_scale_rate=self.activation_scale_learning_rate,
            scale_gradient_factor=True,
            inputs="mixed",
            kept=self.kept,
            order="replacement",
        )


@refiners.register(
    "qdrop",
    QDropConfig,
    sentence="Learns each block's rounding while activations are dropped at random.",
    source="QDrop, Wei et al. 2022, arXiv:2203.05740",
)
@dataclass(frozen=True)
class QDrop(BlockByBlock):
    """See the module docstring."""

    config: QDropConfig

    def courses(self, student: Student) -> list[Course]:
        """See the settings."""
        return [self.config.course()]
