"""DeepInversion, plain and adaptive, first at half the size and then at the whole.

Paper: Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion", CVPR 2020,
    arXiv:1912.08795; schedule and settings of the released ImageNet code, setting 0.
Idea: images of a class that are smooth, stay small, and cause the BatchNorm statistics that the
    teacher stored. Adaptive DeepInversion adds that a student should disagree with the teacher.
Needs: a teacher with BatchNorm2d layers and at least 2 classes; with ``low_resolution_share`` one
    that takes images of half the size too. The adaptive form needs a student, which is given in
    Python, not by a recipe: ``DeepInversion(config, student=network)``; it maps images in the
    teacher's normalised units to logits.
Differs from source:
    * The images kept are those of the smallest loss at full size. The code compares losses of both
      sizes, and its CIFAR version keeps an alias of the last images.
    * The student's divergence is the Jensen-Shannon divergence that the paper names.
    * Any size of image: ``roll`` is in pixels of the full size.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from emptyset.errors import RecipeError, UnsupportedModelError
from emptyset.images.image_set import ImageSet
from emptyset.inversion.batch_plan import require_count
from emptyset.inversion.engine import invert
from emptyset.inversion.labels import random_labels
from emptyset.inversion.method import Group, Method, Objective, Seen
from emptyset.inversion.resampling import draw_roll, rolled
from emptyset.inversion.schedules import Cosine
from emptyset.inversion.setting_checks import (
    require_low_pass,
    require_not_negative,
    require_positive,
    require_share,
)
from emptyset.inversion.standard_units import StandardUnits, standard_units
from emptyset.inversion.updates import Adam, Clipped, Restarted, Update
from emptyset.losses.batch_norm_statistics import deep_inversion_statistics
from emptyset.losses.competition import competition_loss
from emptyset.losses.pixel_norm import pixel_norm_per_image
from emptyset.losses.total_variation import total_variation
from emptyset.monitor import SILENT, Monitor
from emptyset.registry import synthesizers
from emptyset.teachers.teacher import Teacher

Student = Callable[[Tensor], Tensor]
"""Images ``(N, C, H, W)`` [teacher's normalised units] to logits ``(N, K)``, differentiable."""


@dataclass(frozen=True, kw_only=True)
class DeepInversionConfig:
    """Settings of DeepInversion. Defaults are the published ones for ImageNet.

    Attributes:
        steps: Adam steps per batch, both sizes together.
        low_resolution_share: Share of the steps at half the size; 0: none.
        learning_rate: Greatest step size [standardised pixel units per step].
        betas: Decay of Adam's moments.
        warm_up: Steps of linear growth at the begin of each size.
        statistics_weight: Of the BatchNorm statistics (α_f).
        first_layer_multiplier: Additional weight of the first BatchNorm layer.
        smoothness_weight: Of the total variation of the batch (α_tv).
        norm_weight: Of the mean norm of the images (α_l2).
        class_weight: Of the cross-entropy.
        adaptive_weight: Of the competition with a student (α_c; the paper's is 0.2).
        temperature: Of the competition [logit units].
        roll: Greatest random shift [pixels].
        flip: Probability of mirroring.
        clip: Keep pixels between black and white.
        batch_size: Most images optimised together.
        classes: Make images of these classes only; empty: of all.
        low_pass: Cut-off of SynQ's filter over finished images [cycles per image], or null.
    """

    steps: int = 3000
    low_resolution_share: float = 2 / 3
    learning_rate: float = 0.25
    betas: tuple[float, float] = (0.5, 0.9)
    warm_up: int = 100
    statistics_weight: float = 0.01
    first_layer_multiplier: float = 10.0
    smoothness_weight: float = 1e-4
    norm_weight: float = 1e-5
    class_weight: float = 1.0
    adaptive_weight: float = 0.0
    temperature: float = 3.0
    roll: int = 30
    flip: float = 0.5
    clip: bool = True
    batch_size: int = 84
    classes: tuple[int, ...] = ()
    low_pass: float | None = None

    def __post_init__(self) -> None:
        require_positive(self, "steps", "learning_rate", "temperature", "batch_size")
        require_not_negative(self, "warm_up", "statistics_weight", "first_layer_multiplier")
        require_not_negative(self, "smoothness_weight", "norm_weight", "class_weight")
        require_not_negative(self, "adaptive_weight", "roll")
        require_share(self, "flip", "low_resolution_share")
        require_low_pass(self)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"'betas' must lie in 0..1, below 1. Got {self.betas}.")
        if self.low_resolution_share == 1:
            raise ValueError("'low_resolution_share' must leave steps at full size. Got 1.")

    @property
    def low_resolution_steps(self) -> int:
        """Steps at half the size."""
        return int(self.steps * self.low_resolution_share + 1e-9)

    @classmethod
    def smallest(cls) -> "DeepInversionConfig":
        """Settings that finish in a blink."""
        return cls(steps=4, low_resolution_share=0.5, warm_up=1, roll=2, batch_size=4)


@synthesizers.register(
    "deep_inversion",
    DeepInversionConfig,
    sentence="Smooth images of each class that match BatchNorm statistics, at two resolutions.",
    source="DeepInversion, Yin et al. 2020, arXiv:1912.08795",
)
@dataclass(frozen=True)
class DeepInversion:
    """See the module docstring."""

    config: DeepInversionConfig
    student: Student | None = None

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
            UnsupportedModelError: If the teacher lacks what the method needs.
            ImagesError: If the count or a class cannot be, or the loss is not finite.
            RecipeError: If ``adaptive_weight`` is set without a student.
        """
        require_count("deep_inversion", count)
        method = self.method(teacher)
        settings = asdict(self.config)
        return invert(method, teacher, count, seed=seed, settings=settings, monitor=monitor)

    def method(self, teacher: Teacher) -> Method:
        """The parts that the engine runs."""
        config = self.config
        if config.adaptive_weight and self.student is None:
            raise RecipeError(
                "deep_inversion: 'adaptive_weight' needs a student to compete with, and a recipe "
                "cannot name one. In Python: DeepInversion(config, student=network)."
            )
        if config.low_resolution_steps:
            _require_half_size(teacher)
        units = standard_units(teacher.input)
        restarts = (config.low_resolution_steps,) if config.low_resolution_steps else ()
        rule: Update = Restarted(Adam(config.betas), restarts)
        if config.clip:
            rule = Clipped(rule, *units.pixel_range())
        schedule = Cosine(config.learning_rate, warm_up=config.warm_up, restarts=restarts)
        shape = teacher.input.shape

        def draw(step: int, generator: torch.Generator, _count: int) -> dict[str, Tensor]:
            divisor = 2 if step < config.low_resolution_steps else 1
            height, width = shape[1] // divisor, shape[2] // divisor
            most = config.roll // divisor
            return draw_roll(height, width, most=most, flip=config.flip, generator=generator)

        return Method(
            name="deep_inversion",
            objective=self.objective_for(units),
            groups=(Group(rule, schedule),),
            steps=config.steps,
            batch_size=config.batch_size,
            targets=random_labels(teacher, "deep_inversion", config.classes),
            draw=draw,
            augment=_pooled_and_rolled,
            low_pass=config.low_pass,
            keep_best=True,
            best_from=config.low_resolution_steps,
        )

    def objective_for(self, units: StandardUnits) -> Objective:
        """Loss = CE + α_f · R_feature + α_tv · R_tv + α_l2 · R_l2 + α_c · R_compete.

        Args:
            units: Of the teacher, in whose own units the student sees the images.
        """
        config, student = self.config, self.student

        def objective(seen: Seen) -> Tensor:
            statistics = deep_inversion_statistics(
                seen.layers, first_multiplier=config.first_layer_multiplier
            )
            loss = config.statistics_weight * statistics
            loss = loss + config.smoothness_weight * total_variation(seen.images)
            loss = loss + config.norm_weight * pixel_norm_per_image(seen.images).mean()
            if seen.targets is not None:
                classes = nn.functional.cross_entropy(seen.logits, seen.targets)
                loss = loss + config.class_weight * classes
            if student is not None and config.adaptive_weight:
                theirs = student(units.to_teacher(seen.images)).float()
                competition = competition_loss(seen.logits, theirs, temperature=config.temperature)
                loss = loss + config.adaptive_weight * competition
            return loss

        return objective


def _pooled_and_rolled(images_NCHW: Tensor, drawn: Mapping[str, Tensor]) -> Tensor:
    """Half the size where the drawn rows are half as many; then shifted and perhaps mirrored."""
    if len(drawn["roll_rows"]) != images_NCHW.shape[2]:
        images_NCHW = nn.functional.avg_pool2d(images_NCHW, 2)
    return rolled(images_NCHW, drawn["roll_rows"], drawn["roll_columns"])


def _require_half_size(teacher: Teacher) -> None:
    example = teacher.example(1)
    try:
        if min(example.shape[2:]) < 4:
            raise ValueError("fewer than 2 pixels would be left")
        with torch.no_grad():
            teacher.module(nn.functional.avg_pool2d(example, 2))
    # Whatever a network may raise that is built for one size.
    except Exception as error:
        raise UnsupportedModelError(
            f"deep_inversion: {teacher.name} does not take images of half the size "
            f"({type(error).__name__}: {error}). Set low_resolution_share to 0."
        ) from error
