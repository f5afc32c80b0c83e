"""Qimera: images that lie between classes, from superposed embeddings.

Paper: Choi et al., "Qimera: Data-free Quantization with Synthetic Boundary Supporting Samples",
    NeurIPS 2021, arXiv:2111.02625.
Idea: a generator asked for one class at a time makes clusters and leaves the boundaries between
    them empty. Three parts change that, and stand on the generator of GDFQ, ZAQ or AutoReCon
    (``base``): some batches show K classes at once (superposed embeddings; ``superposed_share``),
    embeddings are mapped before they are superposed (disentanglement mapping; ``mapping``), and
    start from the rows of the teacher's last layer (extracted-embedding initialisation;
    ``embeddings``). Each can be switched off.
Needs: what the base needs, at least 2 classes, and for extracted embeddings a last layer that is
    linear or a 1x1 convolution.
Settings of the released scripts, K and p: CIFAR-10 2, 0.4; CIFAR-100 w4 10, 0.4, w5 50, 0.4;
    ResNet-18 w4 500, 0.4, w5 100, 0.4; ResNet-50 w4 500, 0.7, w5 100, 0.7; MobileNetV2 100, 0.4.
Differs from source: extracted embeddings are scaled to the spread that random ones have
    (``embedding_spread: null``: as published; mapped, the rows of a ResNet-20 of CIFAR-100 have a
    standard deviation of 0.07, which noise of 1 hides). Class-conditional BatchNorm of superposed
    classes is their sum (``superposed_norm: mean``: as released). The released scripts run without
    the mapping (its switch is inverted), with noise in every slot before it (``mapping: false``,
    ``noise: per_slot``), and mostly with random embeddings. Guesses: the length of the latent on
    base zaq, and on base autorecon (that of its own generator, not 64), and that the mapping has no
    activation.
"""

from dataclasses import asdict, dataclass
from typing import Any

from emptyset.errors import RecipeError
from emptyset.generators.backbones import (
    AUTO,
    BACKBONES,
    CELL_CHOICES,
    autorecon_backbone,
    form_of,
    upsampling_backbone,
)
from emptyset.generators.class_mixture import SuperposedClasses
from emptyset.generators.conditions import NOISES, SuperposedEmbedding, extract_embeddings
from emptyset.generators.embedding_source import class_centres, required_centres
from emptyset.generators.generator import SUPERPOSED_NORMS, Backbone, Generator
from emptyset.generators.method import GeneratorMethod
from emptyset.generators.published_terms import gdfq_terms, zaq_terms
from emptyset.generators.settings import (
    AdversarialGeneratorConfig,
    LabelledGeneratorConfig,
    require_widths,
)
from emptyset.generators.source_maker import SourceMaker
from emptyset.generators.upsampling_backbone import UpsamplingBackbone
from emptyset.inversion.labels import class_count
from emptyset.inversion.setting_checks import require_choice, require_positive, require_share
from emptyset.registry import sources
from emptyset.teachers.teacher import Teacher

BASES = ("gdfq", "zaq", "autorecon")
EMBEDDINGS = ("trained", "frozen", "random")
# Length of embeddings that nothing else gives; ours, the released ones are as long as the rows of
# the last layer.
EMBEDDING_WIDTH = 100


@dataclass(frozen=True, kw_only=True)
class QimeraConfig:
    """Settings of Qimera; ``null`` stands for the base's own.

    Attributes:
        base: ``gdfq``, ``zaq`` or ``autorecon``: network, loss and optimizer.
        superposed_share: p, probability of a batch of superposed classes; 0: never.
        superposed_classes: K, classes that one image shows (2 up to 10 classes, 10 up to 100, 100
            for more).
        replacement: Draw them with replacement, as released; needed where K exceeds the classes.
        mapping: The disentanglement mapping.
        mapped: Its output's length (gdfq: 64, on the imagenet backbone 100; autorecon: 100; zaq:
            256).
        embeddings: ``trained``: start from the rows of the teacher's last layer; ``frozen``: stay
            there; ``random``: start from noise.
        embedding_spread: Standard deviation over the classes that extracted embeddings start with,
            beside noise of 1 (random ones have 1); ``null``: as they stand in the teacher.
        embedding_width: Length of an embedding (as wide as these rows; 100 where there are none).
        noise: ``after_mapping`` (eq. 8), or ``per_slot``: as released.
        superposed_norm: Class-conditional BatchNorm of superposed classes: their ``sum``, or
            ``mean`` over the K slots, as released.
        label_weight: Of the cross entropy with the soft labels (gdfq, autorecon: 1; zaq: 0.1, ρ).
        statistics_weight: α, of the BatchNorm statistics (gdfq, autorecon).
        relation_weight: Of the feature maps' relations (zaq).
        activation_weight: Of the teacher's last features (zaq).
        similarity_weight: Of the images' similarity in the teacher's last features (SimLoss1 of
            "Enhancing Diversity for Data-free Quantization"); not in Qimera.
        class_similarity_weight: Of their similarity to the others of their class; in no paper.
        student_steps: Batches for the student before one for the generator (zaq).
        learning_rate: Of Adam, at the start.
        momentum: β₁ and β₂ of Adam (0.5, 0.999; zaq: 0.9, 0.999).
        milestones: Shares of all lessons after which the learning rate falls to a tenth (1/4, 1/2,
            3/4; zaq: 1/3, 2/3).
        backbone: Of base gdfq: ``cifar``, ``imagenet``, or ``auto``: cifar up to 64 pixels.
        widths: Channels of the generator's two stages (gdfq, zaq).
        cells: Of base autorecon, see there.
        width: Channels of base autorecon.
    """

    base: str = "gdfq"
    superposed_share: float = 0.4
    superposed_classes: int | None = None
    replacement: bool = True
    mapping: bool = True
    mapped: int | None = None
    embeddings: str = "trained"
    embedding_spread: float | None = 1.0
    embedding_width: int | None = None
    noise: str = "after_mapping"
    superposed_norm: str = "sum"
    label_weight: float | None = None
    statistics_weight: float = 0.1
    relation_weight: float = 1.0
    activation_weight: float = 0.1
    similarity_weight: float = 0.0
    class_similarity_weight: float = 0.0
    student_steps: int = 5
    learning_rate: float = 1e-3
    momentum: tuple[float, float] | None = None
    milestones: tuple[float, ...] | None = None
    backbone: str = AUTO
    widths: tuple[int, int] = (128, 64)
    cells: str = AUTO
    width: int = 64

    def __post_init__(self) -> None:
        require_choice(self, "base", BASES)
        require_choice(self, "embeddings", EMBEDDINGS)
        require_choice(self, "noise", NOISES)
        require_choice(self, "superposed_norm", SUPERPOSED_NORMS)
        require_choice(self, "backbone", BACKBONES)
        require_choice(self, "cells", CELL_CHOICES)
        require_share(self, "superposed_share")
        require_positive(self, "width")
        if self.embedding_spread is not None:
            require_positive(self, "embedding_spread")
        require_widths(self.widths)
        for name in ("superposed_classes", "mapped", "embedding_width"):
            if getattr(self, name) is not None:
                require_positive(self, name)
        self.optimisation()

    @classmethod
    def smallest(cls) -> "QimeraConfig":
        """Settings that finish in a blink; the contract tests run these."""
        return cls(superposed_share=0.5, superposed_classes=3, mapped=6, widths=(5, 4), width=4)

    def optimisation(self) -> LabelledGeneratorConfig | AdversarialGeneratorConfig:
        """The base's loss, optimizer and schedule."""
        given: dict[str, Any] = {
            "learning_rate": self.learning_rate,
            "similarity_weight": self.similarity_weight,
            "class_similarity_weight": self.class_similarity_weight,
        }
        given |= {
            name: value
            for name in ("momentum", "milestones", "label_weight")
            if (value := getattr(self, name)) is not None
        }
        if self.base != "zaq":
            return LabelledGeneratorConfig(statistics_weight=self.statistics_weight, **given)
        own: dict[str, Any] = {
            "momentum": (0.9, 0.999),
            "milestones": (1 / 3, 2 / 3),
            "label_weight": 0.1,
        }
        return AdversarialGeneratorConfig(
            relation_weight=self.relation_weight,
            activation_weight=self.activation_weight,
            student_steps=self.student_steps,
            **own | given,
        )

    def together(self, classes: int) -> int:
        """K for a teacher of this many classes."""
        if self.superposed_classes is not None:
            return self.superposed_classes
        return 2 if classes <= 10 else 10 if classes <= 100 else 100


@sources.register(
    "qimera",
    QimeraConfig,
    sentence="Superposed class embeddings give images that lie between classes.",
    source="Qimera, Choi et al. 2021, arXiv:2111.02625",
)
@dataclass(frozen=True)
class Qimera(SourceMaker):
    """See the module docstring."""

    config: QimeraConfig

    def method(self, teacher: Teacher) -> GeneratorMethod:
        """The parts."""
        config, classes = self.config, class_count(teacher, "qimera")
        sampler = self._sampler(teacher, classes)
        centres = None
        if config.embeddings != "random":
            centres = required_centres(teacher, classes, config.embedding_width, "qimera")
        width = self._width(teacher, classes)
        optimisation = config.optimisation()

        def build() -> Generator:
            condition = SuperposedEmbedding(
                classes, width, mapped=self._mapped(teacher), noise=config.noise
            )
            backbone = self._backbone(teacher, classes, condition.latent)
            return Generator(condition, backbone, classes, superposed_norm=config.superposed_norm)

        def prepare(generator: Generator) -> None:
            if centres is not None:
                assert isinstance(generator.condition, SuperposedEmbedding)
                frozen = config.embeddings == "frozen"
                extract_embeddings(
                    generator.condition, centres, frozen=frozen, spread=config.embedding_spread
                )

        if isinstance(optimisation, AdversarialGeneratorConfig):
            terms, student_steps = zaq_terms(optimisation), config.student_steps
        else:
            terms, student_steps = gdfq_terms(optimisation), 0
        return GeneratorMethod(
            name="qimera",
            build=build,
            sampler=sampler,
            terms=terms,
            config=optimisation,
            settings=asdict(config),
            prepare=prepare,
            student_steps=student_steps,
        )

    def _sampler(self, teacher: Teacher, classes: int) -> SuperposedClasses:
        config, together = self.config, self.config.together(classes)
        if together > classes and not config.replacement and config.superposed_share:
            raise RecipeError(
                f"qimera: superposed_classes is {together}, but {teacher.name} has {classes} "
                f"classes. Set replacement to true, or superposed_classes to at most {classes}."
            )
        return SuperposedClasses(classes, together, config.superposed_share, config.replacement)

    def _width(self, teacher: Teacher, classes: int) -> int:
        """D: as asked for, as wide as the last layer's rows, or a length of our own."""
        if self.config.embedding_width is not None:
            return self.config.embedding_width
        centres = class_centres(teacher, classes)
        return EMBEDDING_WIDTH if centres is None else centres.shape[1]

    def _mapped(self, teacher: Teacher) -> int | None:
        """d, or None: no mapping."""
        config = self.config
        if not config.mapping:
            return None
        if config.mapped is not None or config.base == "zaq":
            return config.mapped or 256
        small = form_of(teacher.input.shape, config.backbone) == "cifar"
        return 64 if config.base == "gdfq" and small else 100

    def _backbone(self, teacher: Teacher, classes: int, latent: int) -> Backbone:
        config, shape = self.config, teacher.input.shape
        if config.base == "autorecon":
            if latent < 3:
                raise RecipeError(
                    f"qimera: on autorecon what enters the generator is cut into three, so it must "
                    f"be at least 3 wide. It is {latent}. Set "
                    f"{'mapped' if config.mapping else 'embedding_width'} to 3 or more."
                )
            return autorecon_backbone(
                shape, classes, cells=config.cells, latent=latent, width=config.width
            )
        if config.base == "zaq":
            return UpsamplingBackbone(shape, latent=latent, widths=config.widths, epsilon=1e-5)
        form = form_of(shape, config.backbone)
        return upsampling_backbone(shape, classes, form=form, latent=latent, widths=config.widths)
