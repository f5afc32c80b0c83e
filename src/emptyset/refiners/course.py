"""How a student is trained: the published presets' numbers, and one course with no blank left."""

import math
from dataclasses import dataclass
from fractions import Fraction

from emptyset.errors import RecipeError
from emptyset.images.image_source import LiveSource

AVERAGE, EXTREMES = "average", "extremes"
# Whose images activation ranges follow before the student learns.
IMAGES, GENERATOR = "images", "gdfq"
RANGES_FROM = (IMAGES, GENERATOR)
DECAY = 0.1
# Share of the batches beside a source that the learned preset leaves to it alone; ours, not tuned.
WARM_UP = 0.25
# Batches that a shortened schedule shows to ranges at least, as far as its warm-up goes. What the
# compounding average gives is up to 3,945 times too large, and within 1 % from 154 batches on.
FEWEST_RANGE_BATCHES, FEWEST_COMPOUNDING = 20, 160


@dataclass(frozen=True)
class Preset:
    """What a setting is where nothing else is said.

    Attributes:
        learned: Steps are learnt with Adam and cosine decay; otherwise ranges are followed and
            tracked, with SGD and a learning rate that falls in stairs.
        epochs: Of the published schedule; steps, warm-up and milestones are counted in them.
        steps: Of the published schedule; None: by bits.
        warm_up: Epochs before the student is updated.
        range_epochs: The last of these in which activation ranges are tracked.
        milestones: Epochs after which the learning rate falls to a tenth.
        batch_size: Images in one update.
        nesterov: Form of SGD's momentum.
        ranges: Of activations: a moving ``average``, fixed after the warm-up, or the ``extremes``
            of all that was trained on.
        flatness: Weight of the flatness of the logits' difference.
        mixing: How images are mixed.
        inundation: How updates are enlarged until codes change.
        moving_rate: Learning rate of the released student, where its BatchNorm is in training mode.
    """

    learned: bool = False
    epochs: int = 1
    steps: int | None = None
    warm_up: int = 0
    range_epochs: int = 0
    milestones: tuple[int, ...] = ()
    batch_size: int = 128
    learning_rate: float = 1e-4
    temperature: float = 20.0
    distillation: float = 1.0
    kd_reduction: str = "batch_mean"
    cross_entropy: float = 1.0
    logit_distance: float = 0.0
    relations: float = 0.0
    weight_decay: float = 1e-4
    augmentation: str = "none"
    nesterov: bool = True
    ranges: str = AVERAGE
    flatness: float = 0.0
    mixing: str = "none"
    inundation: str = "none"
    moving_rate: float | None = None

    def moved(self, live: bool) -> str:
        """How images are moved, beside a source or not: published ones are shown as they come."""
        return self.augmentation if self.learned or not live else "none"


# AdaSG and AdaDFQ on CIFAR: GDFQ's schedule, another loss.
_ADAPTIVE = Preset(
    epochs=400, steps=80_000, warm_up=4, range_epochs=4, milestones=(100, 200, 300), batch_size=16,
    distillation=0.0, cross_entropy=0.0, flatness=1.0,
)  # fmt: skip

PRESETS = {
    "learned": Preset(
        learned=True, temperature=4.0, cross_entropy=0.0, weight_decay=0.0, augmentation="shift"
    ),
    # IntraQ: 151 epochs of 200 updates.
    "published": Preset(
        epochs=151, steps=30_200, warm_up=4, range_epochs=4, milestones=(20, 40, 60),
        batch_size=256, distillation=20.0, augmentation="crop",
    ),
    # GDFQ, Qimera, AutoReCon on CIFAR: 400 epochs of 200 lessons.
    "gdfq": Preset(
        epochs=400, steps=80_000, warm_up=4, range_epochs=4, milestones=(100, 200, 300),
        batch_size=200, kd_reduction="mean",
    ),
    # ZAQ on CIFAR: 300 epochs of 60 turns, each five lessons of the student and one of the
    # generator. With statistics that stand still its rate of 0.1 ruins a ResNet-20 in six batches.
    "zaq": Preset(
        epochs=300, steps=108_000, milestones=(100, 200), batch_size=256, learning_rate=1e-3,
        distillation=0.0, cross_entropy=0.0, logit_distance=1.0, relations=1.0, weight_decay=5e-4,
        nesterov=False, ranges=EXTREMES, moving_rate=0.1,
    ),
    # AIT on CIFAR: GDFQ's schedule, divergence only.
    "ait": Preset(
        epochs=400, steps=80_000, warm_up=4, range_epochs=4, milestones=(100, 200, 300),
        batch_size=200, kd_reduction="mean", cross_entropy=0.0, weight_decay=0.0,
        inundation="quantile",
    ),
    "adasg": _ADAPTIVE,
    "adadfq": _ADAPTIVE,
    # TexQ-style: the schedule is GDFQ's, the loss a reconstruction.
    "texq": Preset(
        epochs=400, steps=80_000, warm_up=4, range_epochs=4, milestones=(100, 200, 300),
        cross_entropy=0.0, mixing="mixup_images",
    ),
}  # fmt: skip


def preset_named(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ValueError: If there is none; not every source has one of its own name.
    """
    if name not in PRESETS:
        raise ValueError(
            f"preset must be one of {', '.join(PRESETS)}. Got '{name}'. Students beside qimera and "
            "autorecon learn by gdfq; docs/sources.md has which preset goes with which source."
        )
    return PRESETS[name]


@dataclass(frozen=True)
class Course:
    """Settings with every blank filled in; see the refiner `distill`.

    Attributes:
        learned: Steps are learnt with Adam; otherwise ranges are followed and tracked, with SGD.
        steps: Batches in all.
        warm_up: So many batches come before the student is updated.
        range_steps: So many of these track activation ranges: the last,
        early_ranges: or the first, as released codes do.
        ranges: ``average`` or ``extremes``; these are tracked always.
        ranges_from: ``images``, or ``gdfq``: the warm-up is over then, see `generator_ranges`.
        milestones: Shares of the steps after which the learning rate falls to a tenth.
        moves_statistics: Whether the student's BatchNorm is in training mode while it learns.
        epoch: Batches between two looks at how good the student is.
    """

    learned: bool
    steps: int
    warm_up: int
    range_steps: int
    early_ranges: bool
    ranges: str
    ranges_from: str
    milestones: tuple[Fraction, ...]
    batch_size: int
    learning_rate: float
    step_learning_rate: float
    nesterov: bool
    temperature: float
    distillation: float
    kd_reduction: str
    cross_entropy: float
    logit_distance: float
    relations: float
    relation_positions: int
    flatness: float
    feature_attention: float
    perturbation: float
    mask: str
    augmentation: str
    flip: float
    mixing: str
    inundation: str
    crossing: float
    inundation_cap: float
    precision: str
    weight_decay: float
    legacy: bool
    moves_statistics: bool
    epoch: int
    held_out: int
    keep: str

    @property
    def first(self) -> int:
        """Number of the first batch that the training itself draws.

        The learned preset's warm-up comes before its steps are taken from calibration, that with a
        generator of its own before stored images are looked at.
        """
        return self.warm_up if self.learned or self.ranges_from == GENERATOR else 0

    def tracks(self, number: int) -> bool:
        """Whether activation ranges follow batch ``number``, counted from 0."""
        if self.learned:
            return False
        if self.ranges == EXTREMES:
            return True
        start = 0 if self.early_ranges else self.warm_up - self.range_steps
        return start <= number < start + self.range_steps

    def share_of_rate(self, number: int) -> float:
        """Factor of the learning rates in update ``number``, counted from 0."""
        if self.learned:
            done = (number - self.first) / (self.steps - self.first)
            return 0.5 * (1 + math.cos(math.pi * done))
        return float(DECAY ** sum(number >= m * self.steps for m in self.milestones))


def before_updates(
    own: Preset, steps: int, warm_up: float | None, *, source: LiveSource | None, legacy: bool
) -> tuple[int, int]:
    """Batches before the student is updated, and how many of them track ranges.

    Args:
        own: The preset.
        steps: Batches in all.
        warm_up: Share of them, or None: the preset's.
        source: That is trained beside the student, if one is.
        legacy: As released: a compounding average of ranges, which needs many batches.

    Raises:
        RecipeError: If nothing is left for the student.
    """
    if own.learned:
        # A source that learns from the student cannot learn before it.
        waits = source is not None and not source.needs_student
        share = WARM_UP if warm_up is None else warm_up
        return (min(round(steps * share), steps - 1) if waits else 0), 0
    before = round(steps * (own.warm_up / own.epochs if warm_up is None else warm_up))
    ranges = 0
    if own.range_epochs:
        fewest = min(FEWEST_RANGE_BATCHES, before)
        if legacy:  # fewer than enough are the worse, the more they are
            fewest = FEWEST_COMPOUNDING if before >= FEWEST_COMPOUNDING else 1
        ranges = max(1, round(steps * own.range_epochs / own.epochs), fewest)
    before = max(before, ranges)
    if before >= steps:
        raise RecipeError(
            f"distill: the student would learn nothing: {before} of {steps} steps are the "
            "warm-up. Raise steps, or lower warm_up."
        )
    if source is not None and source.needs_student and not legacy:
        ranges = before  # it asks the student from the first batch on
    return before, ranges
