"""AdaRound: the rounding of every weight, learnt layer by layer.

Paper: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020,
    arXiv:2004.10568.
Idea: rounding to nearest is not what changes a layer's output least. A relaxed bit per weight is
    learnt on what the layer really reads, and pushed to 0 or 1.
Needs: images (1,024 in the paper); calibrated ranges, set here where there are none.
Differs from source:
    * Weights only, as published: activations keep the ranges of calibration. A layer reads what the
      quantized layers before it give, and its own activations are not quantized while it learns.
    * What a layer reads is computed from what its block reads, so the layers before it in its block
      run again for it.
    * Scales of weights come from the refiner `calibrate`, with exponent 2.4 (paper: squared error).
    * β falls in a line (released code of BRECQ and QDrop), not in AIMET's cosine.
"""

from dataclasses import dataclass

from emptyset.graph.student import Student
from emptyset.reconstruction.config import Course, ReconstructionConfig
from emptyset.refiners.block_by_block import BlockByBlock
from emptyset.registry import refiners


@dataclass(frozen=True, kw_only=True)
class AdaRoundConfig(ReconstructionConfig):
    """Settings of AdaRound. Defaults are the paper's.

    Attributes:
        steps: Optimizer steps of every layer; 0: every weight is rounded to nearest.
        quantized_activations: Whether the layers before also have their activations quantized in
            what a layer reads.
    """

    steps: int = 10_000
    quantized_activations: bool = True

    @classmethod
    def smallest(cls) -> "AdaRoundConfig":
        """Settings that finish in a blink; the contract tests run these."""
        return cls(steps=3, batch_size=4, check_every=2)

    def course(self) -> Course:
        """What these settings come to."""
        return Course(
            name="adaround",
            config=self,
            steps=self.steps,
            by_layer=True,
            prefix_activations=self.quantized_activations,
            activations=False,
        )


@refiners.register(
    "adaround",
    AdaRoundConfig,
    sentence="Learns each weight's rounding, layer by layer.",
    source="AdaRound, Nagel et al. 2020, arXiv:2004.10568",
)
@dataclass(frozen=True)
class AdaRound(BlockByBlock):
    """See the module docstring."""

    config: AdaRoundConfig

    def courses(self, student: Student) -> list[Course]:
        """See the settings."""
        return [self.config.course()]
