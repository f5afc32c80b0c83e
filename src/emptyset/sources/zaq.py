"""ZAQ: a generator that looks for images on which the student errs.

Paper: Liu et al., "Zero-shot Adversarial Quantization", CVPR 2021, arXiv:2103.15263; settings of
    the released code for CIFAR.
Idea: an adversarial game. For five batches the student learns to say what the teacher says, and
    to have features that relate alike; then the generator learns once to make images where it does
    not. Train the student with the preset ``zaq`` of the refiner `distill`.
Needs: teacher and student, stages with feature maps. No BatchNorm statistics, no labels.
Differs from source: the student's BatchNorm keeps the teacher's statistics (there it is in training
    mode and drifts to the made images: setting ``legacy`` of the refiner). Code for ImageNet was
    not released.
"""

from dataclasses import asdict, dataclass

from emptyset.generators.class_mixture import SingleClasses
from emptyset.generators.conditions import NoiseAlone
from emptyset.generators.generator import Generator
from emptyset.generators.method import GeneratorMethod
from emptyset.generators.published_terms import zaq_terms
from emptyset.generators.settings import AdversarialGeneratorConfig, require_widths
from emptyset.generators.source_maker import SourceMaker
from emptyset.generators.upsampling_backbone import UpsamplingBackbone
from emptyset.inversion.labels import class_count
from emptyset.inversion.setting_checks import require_positive
from emptyset.registry import sources
from emptyset.teachers.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class ZaqConfig(AdversarialGeneratorConfig):
    """Settings of ZAQ. Defaults are those of the released code for CIFAR.

    Attributes:
        latent: Length of the noise.
        widths: Channels of the generator's two stages.
        momentum: β₁ and β₂ of Adam.
        milestones: Shares of all lessons after which the learning rate falls to a tenth (100 and
            200 of 300 epochs).
        label_weight: Always 0 here: the images have no labels. See the source `qimera`.
        class_similarity_weight: Always 0 here, too.
    """

    latent: int = 256
    widths: tuple[int, int] = (128, 64)
    momentum: tuple[float, float] = (0.9, 0.999)
    milestones: tuple[float, ...] = (1 / 3, 2 / 3)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "latent")
        require_widths(self.widths)
        for name in ("label_weight", "class_similarity_weight"):
            if getattr(self, name):
                raise ValueError(
                    f"'{name}' needs labels, and ZAQ's images have none. Use the source qimera "
                    "with base zaq."
                )

    @classmethod
    def smallest(cls) -> "ZaqConfig":
        """Settings that finish in a blink; the contract tests run these."""
        return cls(latent=6, widths=(5, 4), student_steps=2)


@sources.register(
    "zaq",
    ZaqConfig,
    sentence="An adversarial generator: it looks for images on which student and teacher differ.",
    source="ZAQ, Liu et al. 2021, arXiv:2103.15263",
)
@dataclass(frozen=True)
class Zaq(SourceMaker):
    """See the module docstring."""

    config: ZaqConfig

    def method(self, teacher: Teacher) -> GeneratorMethod:
        """The parts."""
        config, classes = self.config, class_count(teacher, "zaq")

        def build() -> Generator:
            backbone = UpsamplingBackbone(
                teacher.input.shape, latent=config.latent, widths=config.widths, epsilon=1e-5
            )
            return Generator(NoiseAlone(config.latent), backbone, classes)

        return GeneratorMethod(
            name="zaq",
            build=build,
            sampler=SingleClasses(classes),
            terms=zaq_terms(config),
            config=config,
            settings=asdict(config),
            labelled=False,
            student_steps=config.student_steps,
        )
