"""GDFQ: a generator that is asked for classes and for BatchNorm statistics.

Paper: Xu et al., "Generative Low-bitwidth Data Free Quantization", ECCV 2020, arXiv:2003.03603;
    settings of the released code.
Idea: beside the student a generator learns, from the teacher alone, to make images that the teacher
    sees as the class asked for, with the statistics that its BatchNorm layers stored.
Needs: a teacher with BatchNorm layers and at least 2 classes.
Differs from source: nothing known. (The paper leaves open how label and noise meet; the code
    multiplies them for CIFAR, and uses class-conditional BatchNorm for ImageNet.)
"""

from dataclasses import dataclass

from emptyset.generators.method import GeneratorMethod
from emptyset.generators.published_terms import gdfq_terms
from emptyset.generators.settings import UpsampledGeneratorConfig
from emptyset.generators.source_maker import SourceMaker
from emptyset.generators.upsampled_method import upsampled_method
from emptyset.registry import sources
from emptyset.teachers.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class GdfqConfig(UpsampledGeneratorConfig):
    """Settings of GDFQ. Defaults are those of the released code."""

    @classmethod
    def smallest(cls) -> "GdfqConfig":
        """Settings that finish in a blink; the contract tests run these."""
        return cls(latent=6, widths=(5, 4))


@sources.register(
    "gdfq",
    GdfqConfig,
    sentence="A generator asked for classes and BatchNorm statistics, trained beside the student.",
    source="GDFQ, Xu et al. 2020, arXiv:2003.03603",
)
@dataclass(frozen=True)
class Gdfq(SourceMaker):
    """See the module docstring."""

    config: GdfqConfig

    def method(self, teacher: Teacher) -> GeneratorMethod:
        """The parts."""
        return upsampled_method("gdfq", teacher, self.config, gdfq_terms(self.config))
