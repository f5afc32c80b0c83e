"""GDFQ: a generator that is asked for classes and for BatchNorm statistics.

Paper: Xu et al., "Generative Low-bitwidth Data Free Quantization", ECCV 2020, arXiv:2003.03603;
    settings of the released code.
Idea: beside the student a generator learns, from the teacher alone, to make images that the teacher
    sees as the class asked for, with the statistics that its BatchNorm layers stored.
Needs: a teacher with BatchNorm layers and at least 2 classes.
Differs from source: nothing known. (The paper leaves open how label and noise meet; the code
    multiplies them for CIFAR, and uses class-conditional BatchNorm for ImageNet.)
"""

from dataclasses import asdict, dataclass

from emptyset.generators.backbones import AUTO, BACKBONES, form_of, upsampling_backbone
from emptyset.generators.class_mixture import SingleClasses
from emptyset.generators.conditions import Condition, NoiseAlone, ScaledEmbedding
from emptyset.generators.generator import Generator
from emptyset.generators.generator_source import GeneratorSource
from emptyset.generators.method import GeneratorMethod
from emptyset.generators.published_terms import gdfq_terms
from emptyset.generators.settings import LabelledGeneratorConfig, require_widths
from emptyset.inversion.labels import class_count
from emptyset.inversion.setting_checks import require_choice, require_positive
from emptyset.registry import sources
from emptyset.teachers.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class GdfqConfig(LabelledGeneratorConfig):
    """Settings of GDFQ. Defaults are those of the released code.

    Attributes:
        backbone: ``cifar`` (the embedding of the class scales the noise), ``imagenet``
            (class-conditional BatchNorm), or ``auto``: cifar up to 64 pixels.
        latent: Length of the noise.
        widths: Channels of the generator's two stages.
    """

    backbone: str = AUTO
    latent: int = 100
    widths: tuple[int, int] = (128, 64)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, "backbone", BACKBONES)
        require_positive(self, "latent")
        require_widths(self.widths)

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
class Gdfq:
    """See the module docstring."""

    config: GdfqConfig

    def source(self, teacher: Teacher, *, seed: int) -> GeneratorSource:
        """A fresh source for this teacher, where the teacher is.

        Args:
            teacher: Judges the images; it is copied, never changed.
            seed: Seed of everything random.

        Raises:
            UnsupportedModelError: If the teacher has no BatchNorm or is no classifier.
        """
        config, classes = self.config, class_count(teacher, "gdfq")
        form = form_of(teacher.input.shape, config.backbone)

        def build() -> Generator:
            condition: Condition = (
                ScaledEmbedding(classes, config.latent)
                if form == "cifar"
                else NoiseAlone(config.latent)
            )
            backbone = upsampling_backbone(
                teacher.input.shape, classes, form=form, latent=config.latent, widths=config.widths
            )
            return Generator(condition, backbone, classes)

        method = GeneratorMethod(
            name="gdfq",
            build=build,
            sampler=SingleClasses(classes),
            terms=gdfq_terms(config),
            config=config,
            settings=asdict(config),
        )
        return GeneratorSource(method, teacher, seed=seed)
