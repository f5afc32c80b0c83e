"""AdaSG: a generator that plays against the student, within what the student can still learn.

Paper: Qian et al., "Rethinking Data-Free Quantization as a Zero-Sum Game", AAAI 2023,
    arXiv:2302.09572; settings of the released code.
Idea: teacher and student differ by p = softmax(z_P − z_Q). An image on which p is flat teaches
    nothing, one on which it is a point teaches the wrong thing. The generator keeps the entropy of
    p within a margin, and makes images of classes (of the difference and of the sum of the logits)
    with the stored BatchNorm statistics; the student makes p flat. Train the student with the
    preset ``adasg`` of the refiner `distill`.
Needs: teacher and student, BatchNorm layers, at least 2 classes.
Settings of the released code: these defaults everywhere; batches of 16; ImageNet see the preset.
Differs from source: the batch's smallest entropy, by which others are normalised, is a constant to
    gradients (``legacy``: gradients pass through it), and the division by what it leaves is
    guarded. One forward of teacher and student serves generator and student. There activation
    ranges hear of every batch twice.
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
class AdaSgConfig(AdaptiveGeneratorConfig):
    """Settings of AdaSG. Defaults are those of the released code."""

    @classmethod
    def smallest(cls) -> "AdaSgConfig":
        """Settings that finish in a blink; the contract tests run these."""
        return cls(latent=6, widths=(5, 4))


@sources.register(
    "adasg",
    AdaSgConfig,
    sentence="A generator that plays against the student, within what the student can learn.",
    source="AdaSG, Qian et al. 2023, arXiv:2302.09572",
)
@dataclass(frozen=True)
class AdaSg(SourceMaker):
    """See the module docstring."""

    config: AdaSgConfig

    def method(self, teacher: Teacher) -> GeneratorMethod:
        """The parts."""
        terms = adaptive_terms(self.config)
        return upsampled_method("adasg", teacher, self.config, terms)
