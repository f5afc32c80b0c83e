"""DeepInversion, plain and adaptive, first at half the size and then at the whole.

Paper: Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion", CVPR 2020,
    arXiv:1912.08795; schedule and settings of the released ImageNet code, setting 0.
Idea: images of a class that are smooth, stay small, and cause the BatchNorm statistics that the
    teacher stored. Adaptive DeepInversion adds that a student should disagree with the teacher.
Needs: a teacher with BatchNorm layers, unless ``statistics_weight`` is 0, and at least 2 classes,
    unless ``class_weight`` is 0; with ``low_resolution_share`` one that takes images of half the
    size too. The adaptive form needs a student: a network that ``student`` names, or in Python any
    function, ``DeepInversion(config, student=network)``.
Other published settings: ImageNet setting 1 has 2,000 steps, none at half the size; setting 2 has
    20,000, betas 0.9 and 0.999, no clipping and batches of 152. CIFAR-10: 2,000 steps, none at half
    the size, batches of 256, learning rate 0.05, statistics_weight 10, first_layer_multiplier 1,
    smoothness_weight 2.5e-5, norm_weight 0, roll 2, no flips, no clipping, no warm-up.
Differs from source:
    * The images kept are those of the smallest loss at full size. The code compares losses of both
      sizes, and its CIFAR version keeps an alias of the last images. With joint statistics of
      several batches (ours) they are the last ones: the loss of a batch is then measured beside
      what the others happen to be, and the others are matched to what it became.
    * The student's divergence is the Jensen-Shannon divergence that the paper names.
    * Any size of image: ``roll`` is in pixels of the full size.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from emptyset.errors import RecipeError, UnsupportedModelError
from emptyset.inversion.config import InversionConfig
from emptyset.inversion.frozen_teacher import FrozenTeacher
from emptyset.inversion.labels import random_labels
from emptyset.inversion.method import Group, Method, Objective, Seen
from emptyset.inversion.other_networks import (
    Network,
    named_network,
    network_section,
    require_same_task,
)
from emptyset.inversion.resampling import draw_roll, rolled
from emptyset.inversion.schedules import Cosine
from emptyset.inversion.setting_checks import (
    require_an_aim,
    require_not_negative,
    require_positive,
    require_share,
    require_use_of_classes,
)
from emptyset.inversion.standard_units import StandardUnits, standard_units
from emptyset.inversion.synthesizer import InversionSynthesizer
from emptyset.inversion.updates import Adam, Clipped, Restarted, Update
from emptyset.losses.batch_norm_statistics import deep_inversion_statistics
from emptyset.losses.competition import competition_loss
from emptyset.losses.pixel_norm import pixel_norm_per_image
from emptyset.losses.total_variation import total_variation
from emptyset.registry import synthesizers
from emptyset.teachers.teacher import Teacher

Student = Callable[[Tensor], Tensor]
"""Images ``(N, C, H, W)`` [teacher's normalised units] to logits ``(N, K)``, differentiable."""


@dataclass(frozen=True, kw_only=True)
class DeepInversionConfig(InversionConfig):
    """Settings of DeepInversion. Defaults are the published ones for ImageNet.

    Attributes:
        steps: Adam steps per batch, both sizes together.
        low_resolution_share: Share of the steps at half the size; 0: none.
        learning_rate: Greatest step size [standardised pixel units per step].
        statistics: Whose BatchNorm statistics are matched: those of a ``batch``, whose images of
            the smallest loss are kept, or of all batches together (``joint``, ours), which are then
            optimised in turn, and whose last images are kept.
        betas: Decay of Adam's moments.
        warm_up: Steps of linear growth at the begin of each size.
        statistics_weight: Of the BatchNorm statistics (α_f).
        first_layer_multiplier: Additional weight of the first BatchNorm layer.
        smoothness_weight: Of the total variation of the batch (α_tv).
        norm_weight: Of the mean norm of the images (α_l2).
        class_weight: Of the cross-entropy; 0: no classes.
        adaptive_weight: Of the competition with a student (α_c; the paper's is 0.2).
        student: Network to compete with: its name, as teachers have it, or a section with the keys
            of a recipe's ``teacher`` (``{name: file:weights.safetensors, model: module:function,
            input: 3x32x32, mean: [...], std: [...]}``); null: none, or given in Python.
        temperature: Of the competition [logit units].
        roll: Greatest random shift [pixels].
        flip: Probability of mirroring.
        clip: Keep pixels between black and white.
        classes: Make images of these classes only; empty: of all.
    """

    class_weights: ClassVar[tuple[str, ...]] = ("class_weight",)

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
    student: Network | None = None
    temperature: float = 3.0
    roll: int = 30
    flip: float = 0.5
    clip: bool = True
    batch_size: int = 84
    classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        require_use_of_classes(self)
        require_positive(self, "learning_rate", "temperature")
        require_not_negative(self, "warm_up", "statistics_weight", "first_layer_multiplier")
        require_not_negative(self, "smoothness_weight", "norm_weight", "class_weight")
        require_not_negative(self, "adaptive_weight", "roll")
        require_an_aim(self, "statistics_weight", "class_weight", "adaptive_weight")
        require_share(self, "flip", "low_resolution_share")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"'betas' must lie in 0..1, below 1. Got {self.betas}.")
        named = None if self.student is None else network_section(self.student, "student").name
        if named is not None and not self.adaptive_weight:
            raise ValueError(
                f"'student' is '{named}', but 'adaptive_weight' is 0, so it would not be "
                "asked. Set 'adaptive_weight', for example to 0.2."
            )
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
class DeepInversion(InversionSynthesizer):
    """See the module docstring."""

    config: DeepInversionConfig
    student: Student | None = None

    def method(self, teacher: Teacher) -> Method:
        """The parts that the engine runs."""
        config = self.config
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
            objective=self.objective_for(units, self._student(teacher)),
            groups=(Group(rule, schedule),),
            steps=config.steps,
            batch_size=config.batch_size,
            targets=random_labels(teacher, "deep_inversion", config),
            draw=draw,
            augment=_pooled_and_rolled,
            low_pass=config.low_pass,
            joint_steps=config.turn,
            keep_best=True,
            best_from=config.low_resolution_steps,
            needs_batch_norm=config.statistics_weight > 0,
        )

    def _student(self, teacher: Teacher) -> Student | None:
        """Whom to compete with."""
        config = self.config
        if not config.adaptive_weight:
            return None
        if (self.student is None) == (config.student is None):
            raise RecipeError(
                "deep_inversion: 'adaptive_weight' needs one student to compete with. Name a "
                "network in 'student', or give any in Python: DeepInversion(config, student=...)."
            )
        if config.student is None:
            return self.student
        named = named_network(config.student, "student")
        require_same_task(teacher, named, "deep_inversion")
        frozen = FrozenTeacher(named, teacher.example(1).device)
        units = standard_units(teacher.input)

        def student(images_NCHW: Tensor) -> Tensor:
            standard = frozen.units.from_other(units.from_teacher(images_NCHW), units)
            logits: Tensor = frozen.module(frozen.units.to_teacher(standard))
            return logits

        return student

    def objective_for(self, units: StandardUnits, student: Student | None = None) -> Objective:
        """Loss = CE + α_f · R_feature + α_tv · R_tv + α_l2 · R_l2 + α_c · R_compete.

        Args:
            units: Of the teacher, in whose own units the student sees the images.
            student: Whom to compete with.
        """
        config = self.config

        def objective(seen: Seen) -> Tensor:
            loss = seen.logits.new_zeros(())
            if config.statistics_weight:
                multiplier = config.first_layer_multiplier
                statistics = deep_inversion_statistics(seen.layers, first_multiplier=multiplier)
                loss = config.statistics_weight * statistics
            if config.smoothness_weight:
                loss = loss + config.smoothness_weight * total_variation(seen.images)
            loss = loss + config.norm_weight * pixel_norm_per_image(seen.images).mean()
            if seen.targets is not None:
                classes = nn.functional.cross_entropy(seen.logits, seen.targets)
                loss = loss + config.class_weight * classes
            if student is not None:
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
            # A copy: in training mode a forward would change what BatchNorm stores.
            copy.deepcopy(teacher.module).eval()(nn.functional.avg_pool2d(example, 2))
    # Whatever a network may raise that is built for one size.
    except Exception as error:
        raise UnsupportedModelError(
            f"deep_inversion: {teacher.name} does not take images of half the size "
            f"({type(error).__name__}: {error}). Set low_resolution_share to 0."
        ) from error
