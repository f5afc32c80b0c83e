"""ZeroQ's distilled data.

Paper: Cai et al., "ZeroQ: A Novel Zero Shot Quantization Framework", CVPR 2020, arXiv:2001.00281,
    section 3.1; form and settings of the loss from the released code.
Idea: start from noise and change the pixels until every BatchNorm layer of the teacher sees the
    statistics that it stored during training.
Needs: a teacher with BatchNorm layers. No labels.
Differs from source:
    * Statistics are those of BatchNorm inputs; the code pairs convolutions and BatchNorms by their
      order.
    * Gaussian noise of standard deviation 1 to start from; the code draws pixels evenly, divides
      by their variance, not by their standard deviation, and so starts with 0.0136
      (``initial="legacy"``).
    * Any number of images, in equal batches; the paper makes one batch of 32.
    * Images are optimised in standardised pixel units, which differ from the teacher's only where
      its constants cannot be those of the data.
    * ``schedule="cosine"`` is ours: for few steps, where a plateau is never reached.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from emptyset.inversion.canvas import Pixels
from emptyset.inversion.config import JOINT, PlateauConfig
from emptyset.inversion.labels import random_labels
from emptyset.inversion.method import Group, Method, Seen
from emptyset.inversion.schedules import Cosine, Schedule
from emptyset.inversion.setting_checks import (
    require_choice,
    require_not_negative,
    require_positive,
    require_use_of_classes,
)
from emptyset.inversion.standard_units import standard_units
from emptyset.inversion.synthesizer import InversionSynthesizer
from emptyset.inversion.updates import Adam, Clipped, Update
from emptyset.losses.batch_norm_statistics import batch_statistics, zeroq_statistics
from emptyset.registry import synthesizers
from emptyset.teachers.teacher import Teacher

# Pixels drawn evenly from 0 to 254, less 127.5, over the variance of the data in squared pixels.
_LEGACY_SPREAD = 0.0136
_STATISTICS = {"sample": zeroq_statistics, "batch": batch_statistics, JOINT: batch_statistics}


@dataclass(frozen=True, kw_only=True)
class ZeroQConfig(PlateauConfig):
    """Settings of ZeroQ. Defaults are the published ones unless marked "ours".

    Attributes:
        batch_size: Most images optimised together. Ours: 64.
        statistics: Whose are matched: those of every image (``sample``), of the ``batch``, or of
            all batches together (``joint``).
        learning_rate: First step size [standardised pixel units per step].
        schedule: ``plateau`` or ``cosine``.
        initial: Noise to start from: ``standard`` (Gaussian of spread 1, ours) or ``legacy`` (even
            of spread 0.0136).
        input_weight: Weight of the same term on the images themselves.
        class_weight: Of the cross-entropy with random labels; 0: no labels. Above 0 this is
            "ZeroQ+IL" of IntraQ's tables. Ours: its weight, as the tables do not print it.
        classes: With labels, make images of these classes only; empty: of all.
        clip: Keep pixels between black and white, as every real image does. Ours.
    """

    statistics_known: ClassVar[tuple[str, ...]] = ("sample", "batch", JOINT)
    class_weights: ClassVar[tuple[str, ...]] = ("class_weight",)

    steps: int = 500
    batch_size: int = 64
    statistics: str = "sample"
    plateau_patience: int = 100
    learning_rate: float = 0.5
    schedule: str = "plateau"
    initial: str = "standard"
    input_weight: float = 1.0
    class_weight: float = 0.0
    classes: tuple[int, ...] = ()
    clip: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "learning_rate")
        require_not_negative(self, "input_weight", "class_weight")
        require_choice(self, "initial", ("standard", "legacy"))
        require_choice(self, "schedule", ("plateau", "cosine"))
        require_use_of_classes(self)

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
class ZeroQ(InversionSynthesizer):
    """See the module docstring."""

    config: ZeroQConfig

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
            canvas=Pixels(_LEGACY_SPREAD, even=True) if config.initial == "legacy" else Pixels(),
            targets=random_labels(teacher, "zeroq", config),
            low_pass=config.low_pass,
            joint_steps=config.turn,
        )

    def objective(self, seen: Seen) -> Tensor:
        """Distance of the BatchNorm inputs' statistics, and of the images' own, from the stored.

        loss = D(BatchNorm inputs) + input_weight · D(images; mean 0, standard deviation 1)
            + class_weight · CE
        """
        distance = _STATISTICS[self.config.statistics]
        loss = distance(seen.layers)
        if self.config.input_weight:
            loss = loss + self.config.input_weight * distance([seen.image_statistics()])
        if self.config.class_weight and seen.targets is not None:
            classes = nn.functional.cross_entropy(seen.logits, seen.targets)
            loss = loss + self.config.class_weight * classes
        return loss

    def _schedule(self) -> Schedule:
        config = self.config
        if config.schedule == "cosine":
            return Cosine(config.learning_rate)
        return config.plateau(config.learning_rate)
