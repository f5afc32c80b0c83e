"""HAST: images that are hard for the teacher.

Paper: Li et al., "Hard Sample Matters a Lot in Zero-Shot Quantization", CVPR 2023,
    arXiv:2303.13826; settings of the released code.
Idea: match BatchNorm statistics, and weight the cross-entropy by difficulty, so that no image
    becomes an easy one that only fits.
Needs: a teacher with BatchNorm2d layers and at least 2 classes.
Not here: training the student on images made harder, the paper's other half (a refiner's work).
Differs from source:
    * Defaults are those for CIFAR. ImageNet: hard_weight 0.1, exponent 0.5, crop true.
    * Crops of all images are taken at once, bilinearly, equal to torchvision's one by one.
"""

from dataclasses import asdict, dataclass

from torch import Tensor

from emptyset.images.image_set import ImageSet
from emptyset.inversion.batch_plan import require_count
from emptyset.inversion.engine import invert
from emptyset.inversion.labels import random_labels
from emptyset.inversion.local_reinforcement import LocalReinforcement
from emptyset.inversion.method import Group, Method, Seen
from emptyset.inversion.schedules import Plateau
from emptyset.inversion.setting_checks import (
    require_low_pass,
    require_not_negative,
    require_positive,
    require_share,
)
from emptyset.inversion.updates import Adam
from emptyset.losses.batch_norm_statistics import gdfq_statistics
from emptyset.losses.hard_samples import hard_sample_loss
from emptyset.monitor import SILENT, Monitor
from emptyset.registry import synthesizers
from emptyset.teachers.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class HastConfig:
    """Settings of HAST. Defaults are those of the released code for CIFAR.

    Attributes:
        steps: Adam steps per batch.
        learning_rate: First step size [standardised pixel units per step].
        plateau_patience: Steps without a new best loss before the step size falls.
        plateau_factor: What it is multiplied by.
        plateau_minimum: Its lower limit [standardised pixel units per step].
        batch_size: Most images optimised together.
        hard_weight: β, weight of the cross-entropy.
        exponent: γ, how much more hard images count; 0: all alike.
        crop: Look at random crops in half of the steps, as for ImageNet.
        smallest_crop: Least share of the area that a crop has.
        classes: Make images of these classes only; empty: of all.
        low_pass: Cut-off of SynQ's filter over finished images [cycles per image], or null.
    """

    steps: int = 1000
    learning_rate: float = 0.5
    plateau_patience: int = 50
    plateau_factor: float = 0.1
    plateau_minimum: float = 1e-4
    batch_size: int = 256
    hard_weight: float = 10.0
    exponent: float = 2.0
    crop: bool = False
    smallest_crop: float = 0.5
    classes: tuple[int, ...] = ()
    low_pass: float | None = None

    def __post_init__(self) -> None:
        require_positive(self, "steps", "learning_rate", "plateau_patience", "batch_size")
        require_positive(self, "smallest_crop")
        require_share(self, "smallest_crop")
        require_not_negative(self, "plateau_minimum", "hard_weight", "exponent")
        require_low_pass(self)
        if not 0 < self.plateau_factor < 1:
            raise ValueError(f"'plateau_factor' must lie in 0..1. Got {self.plateau_factor}.")

    @classmethod
    def smallest(cls) -> "HastConfig":
        """Settings that finish in a blink."""
        return cls(steps=3, batch_size=4)


@synthesizers.register(
    "hast",
    HastConfig,
    sentence="Weights the cross-entropy by difficulty, so that images stay hard for the teacher.",
    source="HAST, Li et al. 2023, arXiv:2303.13826",
)
@dataclass(frozen=True)
class Hast:
    """See the module docstring."""

    config: HastConfig

    def synthesize(
        self, teacher: Teacher, count: int, *, seed: int, monitor: Monitor = SILENT
    ) -> ImageSet:
        """Exactly ``count`` images, with the class indices that they were made for.

        Args:
            teacher: With BatchNorm2d layers and at least 2 classes.
            count: At least 2.
            seed: Seed of everything random.
            monitor: Hears of progress, keeps and restores states.

        Raises:
            UnsupportedModelError: If the teacher has no BatchNorm2d layers or no classes.
            ImagesError: If the count or a class cannot be, or the loss is not finite.
        """
        require_count("hast", count)
        method = self.method(teacher)
        settings = asdict(self.config)
        return invert(method, teacher, count, seed=seed, settings=settings, monitor=monitor)

    def method(self, teacher: Teacher) -> Method:
        """The parts that the engine runs."""
        config = self.config
        looks = None
        if config.crop:
            looks = LocalReinforcement(teacher.input.shape, config.smallest_crop)
        schedule = Plateau(
            config.learning_rate,
            config.plateau_factor,
            config.plateau_patience,
            config.plateau_minimum,
        )
        return Method(
            name="hast",
            objective=self.objective,
            groups=(Group(Adam(), schedule),),
            steps=config.steps,
            batch_size=config.batch_size,
            targets=random_labels(teacher, "hast", config.classes),
            draw=None if looks is None else looks.draw,
            augment=None if looks is None else looks.augment,
            low_pass=config.low_pass,
        )

    def objective(self, seen: Seen) -> Tensor:
        """Loss = L_BNS + β · mean (1 − p_y)^γ · CE."""
        loss = gdfq_statistics(seen.layers)
        if seen.targets is not None:
            hard = hard_sample_loss(seen.logits, seen.targets, exponent=self.config.exponent)
            loss = loss + self.config.hard_weight * hard
        return loss
