"""TexQ-style: a generator that is led by one well-textured image per class. A reconstruction.

Paper: Chen et al., "TexQ: Zero-shot Network Quantization with Texture Feature Distribution
    Calibration", NeurIPS 2023.
Idea: before anything is trained, one image per class is made whose textures are spread as those of
    photographs; what it causes in the teacher's BatchNorm layers is the centre of its class. A
    generator then learns labels, stored statistics and these centres, shallow layers relaxed and
    deep ones tightened. The student learns from mixed images, whose target is what the teacher says
    of them: preset ``texq`` of the refiner `distill`.
Needs: a teacher with BatchNorm layers and at least 2 classes.
Reconstruction: neither paper nor code could be seen. Reported: the three stages, an image per class
    by up to 1,500 steps of 0.05, Laws' texture energies with θ_U = 0.3, ε = 0.015 and 9 dominant
    ones, Adam of 1e-3 for the generator, batches of 128 (ImageNet: 16). From SynQ's released
    re-implementation: steps of 0.5 that fall, wherever 50 brought nothing, down to 0.05; weights of
    the first stage, of statistics (0.4) and of centres (0.02). Ours: the form of the texture loss
    and its weight, and that an image is led by the centre of its own class; ``centres: all`` leads
    the batch by all of them together, as SynQ.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from emptyset.generators.calibration_centres import CalibrationCentres, CentreSettings
from emptyset.generators.judged import STATISTICS, Judged, Term
from emptyset.generators.method import GeneratorMethod
from emptyset.generators.published_terms import gdfq_terms
from emptyset.generators.settings import UpsampledGeneratorConfig
from emptyset.generators.source_maker import SourceMaker
from emptyset.generators.upsampled_method import upsampled_method
from emptyset.inversion.labels import class_count
from emptyset.inversion.setting_checks import (
    require_choice,
    require_not_negative,
    require_positive,
    require_share,
)
from emptyset.losses.class_centres import distance_from_all_centres, distance_from_own_centre
from emptyset.losses.texture_energy import ENERGIES
from emptyset.registry import sources
from emptyset.teachers.teacher import Teacher

CENTRES = ("own", "all")


@dataclass(frozen=True, kw_only=True)
class TexQConfig(UpsampledGeneratorConfig):
    """Settings of TexQ-style images. Where defaults come from is told in the module docstring.

    Attributes:
        statistics_weight: Of the distance from the stored BatchNorm statistics.
        centre_weight: Of the distance from the centres; 0: none are made. 0.02 was published for
            ``all``, whose sum is divided by layers and images: ``own`` is a mean, so with the same
            number it counts twice as many times as a batch has images.
        centres: ``own``: every image is led by the centre of its class; ``all``: the batch by all
            centres together.
        centre_steps: Steps of Adam for the image of a class.
        centre_learning_rate: First step size for these [standardised pixel units per step].
        centre_minimum_rate: Last step size.
        centre_patience: Steps without a new best loss before the step size falls to a tenth.
        centre_label_weight: Of the cross entropy of these images.
        shallow_weight: Of their BatchNorm statistics in the first half of the layers.
        deep_weight: Of their BatchNorm statistics in the other half.
        texture_weight: Of their texture energies.
        texture_highest: θ_U, most that one texture energy may have, as a share of all.
        texture_lowest: ε, least that a dominant one must have.
        texture_dominant: How many dominant ones there must be, 1 to 14.
        centre_batch: Most classes whose images are made together; as many fit into memory.
    """

    shaping: ClassVar[tuple[str, ...]] = (
        "label_weight", "statistics_weight", "centre_weight",
    )  # fmt: skip

    statistics_weight: float = 0.4
    centre_weight: float = 0.02
    centres: str = "own"
    centre_steps: int = 1500
    centre_learning_rate: float = 0.5
    centre_minimum_rate: float = 0.05
    centre_patience: int = 50
    centre_label_weight: float = 5.0
    shallow_weight: float = 0.2
    deep_weight: float = 1.1
    texture_weight: float = 1.0
    texture_highest: float = 0.3
    texture_lowest: float = 0.015
    texture_dominant: int = 9
    centre_batch: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative(
            self, "centre_label_weight", "shallow_weight", "deep_weight",
            "texture_weight", "centre_minimum_rate",
        )  # fmt: skip
        require_positive(self, "centre_steps", "centre_learning_rate", "centre_patience")
        require_share(self, "texture_highest", "texture_lowest")
        require_choice(self, "centres", CENTRES)
        if not 1 <= self.texture_dominant <= ENERGIES:
            raise ValueError(
                f"'texture_dominant' must be 1 to {ENERGIES}, the number of energies. Got "
                f"{self.texture_dominant}."
            )
        if self.centre_batch < 2:
            raise ValueError(
                "'centre_batch' must be at least 2: the statistics of a batch say nothing of one "
                f"image. Got {self.centre_batch}."
            )

    @classmethod
    def smallest(cls) -> "TexQConfig":
        """Settings that finish in a blink; the contract tests run these."""
        return cls(latent=6, widths=(5, 4), centre_steps=2, centre_batch=3)

    def first_stage(self) -> CentreSettings:
        """How the images of the classes are made."""
        return CentreSettings(
            steps=self.centre_steps,
            learning_rate=self.centre_learning_rate,
            minimum_rate=self.centre_minimum_rate,
            patience=self.centre_patience,
            label_weight=self.centre_label_weight,
            shallow=self.shallow_weight,
            deep=self.deep_weight,
            texture_weight=self.texture_weight,
            highest=self.texture_highest,
            lowest=self.texture_lowest,
            dominant=self.texture_dominant,
            at_once=self.centre_batch,
        )


@sources.register(
    "texq",
    TexQConfig,
    sentence="TexQ-style reconstruction: one well-textured image per class leads a generator.",
    source="after TexQ, Chen et al. 2023; a reconstruction, the paper's formulas were not seen",
)
@dataclass(frozen=True)
class TexQ(SourceMaker):
    """See the module docstring."""

    config: TexQConfig

    def method(self, teacher: Teacher) -> GeneratorMethod:
        """The parts."""
        config, terms, groundwork = self.config, gdfq_terms(self.config), None
        if config.centre_weight:
            classes = class_count(teacher, "texq")
            groundwork = CalibrationCentres(teacher, classes, config.first_stage())
            terms = (*terms, self._term(groundwork))
        return upsampled_method("texq", teacher, config, terms, groundwork=groundwork)

    def _term(self, found: CalibrationCentres) -> Term:
        """The distance from the centres."""

        def own(judged: Judged) -> Tensor:
            assert judged.targets is not None
            return distance_from_own_centre(judged.layers, judged.targets, found.centres)

        def together(judged: Judged) -> Tensor:
            return distance_from_all_centres(judged.layers, found.centres)

        of = own if self.config.centres == "own" else together
        weight, needs = self.config.centre_weight, frozenset({STATISTICS})
        return Term("class centres", weight, of, needs, "centre_weight")
