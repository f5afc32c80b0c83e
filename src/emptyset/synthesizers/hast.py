"""HAST: images that are hard for the teacher.

Paper: Li et al., "Hard Sample Matters a Lot in Zero-Shot Quantization", CVPR 2023,
    arXiv:2303.13826; settings of the released code.
Idea: match BatchNorm statistics, and weight the cross-entropy by difficulty, so that no image
    becomes an easy one that only fits.
Needs: a teacher with BatchNorm layers; at least 2 classes, unless ``hard_weight`` is 0.
Not here: training the student on images made harder, the paper's other half. It is the refiner
    ``distill`` with ``preset: published``, ``cross_entropy: 0`` and (CIFAR-10, CIFAR-100, ImageNet)
    ``feature_attention`` λ 1000, 2000, 4000; ``perturbation`` ε 0.01, 0.02, 0.01;
    ``learning_rate`` 1.0e-5, 1.0e-5, 1.0e-6; ImageNet also ``batch_size: 16`` and ``milestones:
    [0.6623]``. Released with ``ranges_from: gdfq``.
Differs from source:
    * Defaults are those for CIFAR. ImageNet: hard_weight 0.1, exponent 0.5, crop true.
    * Crops of all images are taken at once, bilinearly, equal to torchvision's one by one but where
      none of its ten tries fits: then the last one is cut to fit, not the whole image taken.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from emptyset.inversion.config import PlateauConfig
from emptyset.inversion.labels import random_labels
from emptyset.inversion.local_reinforcement import LocalReinforcement
from emptyset.inversion.method import Group, Method, Seen
from emptyset.inversion.setting_checks import (
    require_not_negative,
    require_positive,
    require_share,
    require_use_of_classes,
)
from emptyset.inversion.synthesizer import InversionSynthesizer
from emptyset.inversion.updates import Adam
from emptyset.losses.batch_norm_statistics import gdfq_statistics
from emptyset.losses.hard_samples import hard_sample_loss
from emptyset.registry import synthesizers
from emptyset.teachers.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class HastConfig(PlateauConfig):
    """Settings of HAST. Defaults are those of the released code for CIFAR.

    Attributes:
        learning_rate: First step size [standardised pixel units per step].
        hard_weight: β, weight of the cross-entropy; 0: no classes.
        exponent: γ, how much more hard images count; 0: all alike.
        crop: Look at random crops in half of the steps, as for ImageNet.
        smallest_crop: Least share of the area that a crop has.
        classes: Make images of these classes only; empty: of all.
    """

    class_weights: ClassVar[tuple[str, ...]] = ("hard_weight",)

    learning_rate: float = 0.5
    hard_weight: float = 10.0
    exponent: float = 2.0
    crop: bool = False
    smallest_crop: float = 0.5
    classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "learning_rate", "smallest_crop")
        require_share(self, "smallest_crop")
        require_not_negative(self, "hard_weight", "exponent")
        require_use_of_classes(self)

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
class Hast(InversionSynthesizer):
    """See the module docstring."""

    config: HastConfig

    def method(self, teacher: Teacher) -> Method:
        """The parts that the engine runs."""
        config = self.config
        looks = None
        if config.crop:
            looks = LocalReinforcement(teacher.input.shape, config.smallest_crop)
        return Method(
            name="hast",
            objective=self.objective,
            groups=(Group(Adam(), config.plateau(config.learning_rate)),),
            steps=config.steps,
            batch_size=config.batch_size,
            targets=random_labels(teacher, "hast", config),
            draw=None if looks is None else looks.draw,
            augment=None if looks is None else looks.augment,
            low_pass=config.low_pass,
            joint_steps=config.turn,
        )

    def objective(self, seen: Seen) -> Tensor:
        """Loss = L_BNS + β · mean (1 − p_y)^γ · CE."""
        loss = gdfq_statistics(seen.layers)
        if seen.targets is not None:
            hard = hard_sample_loss(seen.logits, seen.targets, exponent=self.config.exponent)
            loss = loss + self.config.hard_weight * hard
        return loss
