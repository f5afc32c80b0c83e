"""AdaDFQ: images between those on which student and teacher agree and those on which they do not.

Paper: Qian et al., "Adaptive Data-Free Quantization", CVPR 2023, arXiv:2303.06869; settings of the
    released code.
Idea: AdaSG's game with a wider margin and its own weights for the two borders: images that both
    networks together see as their class, and images that the teacher alone does. Train the student
    with the preset ``adadfq`` of the refiner `distill`.
Needs: teacher and student, BatchNorm layers, at least 2 classes.
Settings of the released code: these defaults for 3 bits; ResNet-18 at 4 and 5 bits entropy_low 0.3,
    at 5 bits difference_weight 0.3; MobileNetV2 at 4 bits difference_weight 0.3; ResNet-50 at 3
    bits entropy_low 0.4, at 4 and 5 bits 0.3, at 4 bits difference_weight 0.1. Batches of 16.
Differs from source: as AdaSG.
"""

from dataclasses import dataclass

from emptyset.generators.method import GeneratorMethod
from emptyset.generators.published_terms import adaptive_terms
from emptyset.generators.settings import AdaptiveGeneratorConfig
from emptyset.generators.source_maker import SourceMaker
from emptyset.generators.upsampled_method import upsampled_method
from emptyset.registry import sources
from emptyset.teachers.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class AdaDfqConfig(AdaptiveGeneratorConfig):
    """Settings of AdaDFQ. Defaults are those of the released code for 3 bits.

    Attributes:
        difference_weight: α_ds, of the cross entropy of ``z_P − z_Q`` with the label.
        entropy_low: λ_l, where the margin begins, 0..1 (the paper: 0 to 0.2 make no difference).
    """

    difference_weight: float = 0.2
    entropy_low: float = 0.1

    @classmethod
    def smallest(cls) -> "AdaDfqConfig":
        """Settings that finish in a blink; the contract tests run these."""
        return cls(latent=6, widths=(5, 4))


@sources.register(
    "adadfq",
    AdaDfqConfig,
    sentence="Images between those on which student and teacher agree and those on which not.",
    source="AdaDFQ, Qian et al. 2023, arXiv:2303.06869",
)
@dataclass(frozen=True)
class AdaDfq(SourceMaker):
    """See the module docstring."""

    config: AdaDfqConfig

    def method(self, teacher: Teacher) -> GeneratorMethod:
        """The parts."""
        terms = adaptive_terms(self.config)
        return upsampled_method("adadfq", teacher, self.config, terms)
