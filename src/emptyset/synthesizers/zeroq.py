"""ZeroQ's distilled data.

Paper: Cai et al., "ZeroQ: A Novel Zero Shot Quantization Framework", CVPR 2020, arXiv:2001.00281,
    section 3.1; form and settings of the loss from the released code.
Idea: start from noise and change the pixels until every BatchNorm layer of the teacher sees the
    statistics that it stored during training.
Needs: a teacher with BatchNorm2d layers. No labels.
Differs from source:
    * Statistics are those of BatchNorm inputs; the code pairs convolutions and BatchNorms by their
      order.
    * Noise starts with standard deviation 1; the code divides by the variance of the pixels, not
      by their standard deviation, and starts with 0.0136 (``initial="legacy"``).
    * Any number of images, in equal batches; the paper makes one batch of 32.
    * Images are optimised in standardised pixel units, which differ from the teacher's only where
      its constants cannot be those of the data.
    * ``schedule="cosine"`` is ours: for few steps, where a plateau is never reached.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from torch import Tensor, nn

from emptyset.images.image_set import ImageSet
from emptyset.inversion.batch_plan import require_count
from emptyset.inversion.canvas import Pixels
from emptyset.inversion.engine import invert
from emptyset.inversion.labels import random_labels
from emptyset.inversion.method import Group, Method, Seen
from emptyset.inversion.schedules import Cosine, Plateau, Schedule
from emptyset.inversion.setting_checks import require_low_pass
from emptyset.inversion.standard_units import standard_units
from emptyset.inversion.updates import Adam, Clipped, Update
from emptyset.losses.batch_norm_statistics import batch_statistics, zeroq_statistics
from emptyset.losses.layer_statistics import input_statistics
from emptyset.monitor import SILENT, Monitor
from emptyset.registry import synthesizers
from emptyset.teachers.teacher import Teacher

_SPREADS = {"standard": 1.0, "legacy": 0.0136}
_STATISTICS = {"sample": zeroq_statistics, "batch": batch_statistics}
_SCHEDULES = ("plateau", "cosine")


@dataclass(frozen=True, kw_only=True)
class ZeroQConfig:
    """Settings of ZeroQ. Defaults are the published ones unless marked "ours".

    Attributes:
        steps: Adam steps per batch.
        learning_rate: First step size [standardised pixel units per step].
        batch_size: Most images optimised together. Ours: 64.
        schedule: ``plateau`` or ``cosine``.
        plateau_patience: Steps without a new best loss before the step size falls.
        plateau_factor: What it is multiplied by.
        plateau_minimum: Its lower limit [standardised pixel units per step].
        initial: Noise to start from: ``standard`` (spread 1, ours) or ``legacy`` (0.0136).
        statistics: Match those of every image (``sample``) or of the batch (``batch``).
        input_weight: Weight of the same term on the images themselves.
        class_weight: Of the cross-entropy with random labels; 0: no labels. Above 0 this is
            "ZeroQ+IL" of IntraQ's tables. Ours: its weight, as the tables do not print it.
        clip: Keep pixels between black and white, as every real image does. Ours.
        low_pass: Cut-off of SynQ's filter over finished images [cycles per image], or null.
    """

    steps: int = 500
    learning_rate: float = 0.5
    batch_size: int = 64
    schedule: str = "plateau"
    plateau_patience: int = 100
    plateau_factor: float = 0.1
    plateau_minimum: float = 1e-4
    initial: str = "standard"
    statistics: str = "sample"
    input_weight: float = 1.0
    class_weight: float = 0.0
    clip: bool = False
    low_pass: float | None = None

    def __post_init__(self) -> None:
        require_low_pass(self)
        for name in ("steps", "learning_rate", "batch_size", "plateau_patience"):
            if not getattr(self, name) > 0:
                raise ValueError(f"'{name}' must be positive. Got {getattr(self, name)}.")
        if not 0 < self.plateau_factor < 1:
            raise ValueError(f"'plateau_factor' must lie in 0..1. Got {self.plateau_factor}.")
        for name in ("plateau_minimum", "input_weight", "class_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"'{name}' must not be negative. Got {getattr(self, name)}.")
        choices: dict[str, Iterable[str]] = {
            "initial": _SPREADS,
            "statistics": _STATISTICS,
            "schedule": _SCHEDULES,
        }
        for name, known in choices.items():
            if getattr(self, name) not in tuple(known):
                raise ValueError(
                    f"'{name}' must be one of {', '.join(known)}. Got '{getattr(self, name)}'."
                )

    @classmethod
    def smallest(cls) -> "ZeroQConfig":
        """Settings that finish in a blink."""
        return cls(steps=3, batch_size=4)


@synthesizers.register(
    "zeroq",
    ZeroQConfig,
    sentence="Changes noise until every BatchNorm layer sees the statistics that it stored.",
    source="ZeroQ, Cai et al. 2020, arXiv:2001.00281",
)
@dataclass(frozen=True)
class ZeroQ:
    """See the module docstring."""

    config: ZeroQConfig

    def synthesize(
        self, teacher: Teacher, count: int, *, seed: int, monitor: Monitor = SILENT
    ) -> ImageSet:
        """Exactly ``count`` images; with targets if ``class_weight`` is above 0.

        Args:
            teacher: With BatchNorm2d layers.
            count: At least 2.
            seed: Seed of everything random.
            monitor: Hears of progress, keeps and restores states.

        Raises:
            UnsupportedModelError: If the teacher has no BatchNorm2d layers, or labels are asked
                for and it has no classes.
            ImagesError: If fewer than 2 images are asked for, or the loss is not finite.
        """
        require_count("zeroq", count)
        settings = asdict(self.config)
        method = self.method(teacher)
        return invert(method, teacher, count, seed=seed, settings=settings, monitor=monitor)

    def method(self, teacher: Teacher) -> Method:
        """The parts that the engine runs."""
        config = self.config
        rule: Update = Adam()
        if config.clip:
            rule = Clipped(rule, *standard_units(teacher.input).pixel_range())
        return Method(
            name="zeroq",
            objective=self.objective,
            groups=(Group(rule, self._schedule()),),
            steps=config.steps,
            batch_size=config.batch_size,
            canvas=Pixels(_SPREADS[config.initial]),
            targets=random_labels(teacher, "zeroq") if config.class_weight else None,
            low_pass=config.low_pass,
        )

    def objective(self, seen: Seen) -> Tensor:
        """Distance of the BatchNorm inputs' statistics, and of the images' own, from the stored.

        loss = D(BatchNorm inputs) + input_weight · D(images; mean 0, standard deviation 1)
            + class_weight · CE
        """
        distance = _STATISTICS[self.config.statistics]
        loss = distance(seen.layers)
        if self.config.input_weight:
            loss = loss + self.config.input_weight * distance([input_statistics(seen.images)])
        if self.config.class_weight and seen.targets is not None:
            classes = nn.functional.cross_entropy(seen.logits, seen.targets)
            loss = loss + self.config.class_weight * classes
        return loss

    def _schedule(self) -> Schedule:
        config = self.config
        if config.schedule == "cosine":
            return Cosine(config.learning_rate)
        return Plateau(
            config.learning_rate,
            config.plateau_factor,
            config.plateau_patience,
            config.plateau_minimum,
        )
