"""DFFG: images by fast gradient iteration, several of them harvested on the way.

Paper: Leng et al., "DFFG: Fast Gradient Iteration for Data-free Quantization", BMVC 2023. Only the
    poster could be read.
Idea: MI-FGSM moves every pixel by the same step against the sign of a momentum of gradients. That
    is fast and keeps images apart, and images taken during one optimisation are all used: S
    harvests give S times the images for the same work.
Needs: a teacher with BatchNorm layers; at least 2 classes, unless ``class_weight`` is 0.
Reconstructed (ours), as the poster does not print it: momentum, step sizes and their decay, all
    weights, steps, burn-in, number of snapshots, and the form of L_BNS (GDFQ's).
Differs from source:
    * The poster's MI-FGSM has the loss J in the numerator, the source of MI-FGSM its gradient: a
      slip, corrected.
    * Regularisers are means over images, so that no weight depends on the batch size.
    * ``update="adam"`` is the other side of the poster's ablation, all else being equal;
      ``restart`` and ``crop`` are ours.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from emptyset.inversion.config import InversionConfig
from emptyset.inversion.labels import random_labels
from emptyset.inversion.local_reinforcement import LocalReinforcement
from emptyset.inversion.method import Group, Method, Seen
from emptyset.inversion.schedules import Cosine
from emptyset.inversion.setting_checks import (
    require_choice,
    require_not_negative,
    require_positive,
    require_use_of_classes,
)
from emptyset.inversion.snapshots import evenly_spaced
from emptyset.inversion.synthesizer import InversionSynthesizer
from emptyset.inversion.updates import Adam, MomentumSign, Restarted, Update
from emptyset.losses.batch_norm_statistics import gdfq_statistics
from emptyset.losses.pixel_norm import pixel_norm_per_image
from emptyset.losses.total_variation import total_variation_per_image
from emptyset.registry import synthesizers
from emptyset.teachers.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class DffgConfig(InversionConfig):
    """Settings of DFFG. None is published; defaults are a labelled reconstruction.

    Attributes:
        step_size: First step size; Adam's learning rate [standardised pixel units per step].
        final_step_size: Step size at the end of the cosine.
        momentum: Weight of earlier gradients (``mi_fgsm``; 1 in MI-FGSM's own paper, which here
            ends four times as far from the stored statistics).
        update: ``mi_fgsm``, or ``adam`` to compare with.
        smoothness_weight: Of the total variation per image (α_tv).
        norm_weight: Of the norm per image (α_l2).
        class_weight: Of the cross-entropy (β); 0: no classes.
        snapshots: Harvests per batch.
        burn_in: Share of the steps before the first harvest may be taken.
        restart: Start step size and momentum anew after each harvest.
        crop: Look at random crops, with IntraQ's local object reinforcement.
        batch_size: Most images optimised together; each gives ``snapshots`` images.
        classes: Make images of these classes only; empty: of all.
    """

    class_weights: ClassVar[tuple[str, ...]] = ("class_weight",)

    steps: int = 400
    step_size: float = 0.1
    final_step_size: float = 0.005
    momentum: float = 0.9
    update: str = "mi_fgsm"
    smoothness_weight: float = 1e-4
    norm_weight: float = 1e-5
    class_weight: float = 1.0
    snapshots: int = 10
    burn_in: float = 0.4
    restart: bool = False
    crop: bool = False
    batch_size: int = 512
    classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "step_size", "snapshots")
        require_not_negative(self, "final_step_size", "momentum")
        require_not_negative(self, "smoothness_weight", "norm_weight", "class_weight")
        require_choice(self, "update", ("mi_fgsm", "adam"))
        require_use_of_classes(self)
        if not 0 <= self.burn_in < 1:
            raise ValueError(f"'burn_in' must lie in 0..1, below 1. Got {self.burn_in}.")
        evenly_spaced(self.steps, self.burn_in, self.snapshots)

    @classmethod
    def smallest(cls) -> "DffgConfig":
        """Settings that finish in a blink."""
        return cls(steps=7, snapshots=4, batch_size=3)


@synthesizers.register(
    "dffg",
    DffgConfig,
    sentence="Signed momentum steps; images harvested on the way (reconstructed from a poster).",
    source="DFFG, Leng et al., BMVC 2023 (poster); settings and weights reconstructed",
)
@dataclass(frozen=True)
class Dffg(InversionSynthesizer):
    """See the module docstring."""

    config: DffgConfig

    def method(self, teacher: Teacher) -> Method:
        """The parts that the engine runs."""
        config = self.config
        snapshots = evenly_spaced(config.steps, config.burn_in, config.snapshots)
        restarts = snapshots[:-1] if config.restart else ()
        rule: Update = Adam() if config.update == "adam" else MomentumSign(config.momentum)
        if restarts:
            rule = Restarted(rule, restarts)
        schedule = Cosine(config.step_size, config.final_step_size, restarts=restarts)
        looks = LocalReinforcement(teacher.input.shape) if config.crop else None
        return Method(
            name="dffg",
            objective=self.objective,
            groups=(Group(rule, schedule),),
            steps=config.steps,
            batch_size=config.batch_size,
            targets=random_labels(teacher, "dffg", config),
            draw=None if looks is None else looks.draw,
            augment=None if looks is None else looks.augment,
            snapshots=snapshots,
            low_pass=config.low_pass,
            joint_steps=config.turn,
        )

    def objective(self, seen: Seen) -> Tensor:
        """Loss = L_BNS + α_tv · mean_n TV(x_n) + α_l2 · mean_n ‖x_n‖₂ + β · CE."""
        config = self.config
        loss = gdfq_statistics(seen.layers)
        if config.smoothness_weight:
            smoothness = total_variation_per_image(seen.images).mean()
            loss = loss + config.smoothness_weight * smoothness
        if config.norm_weight:
            loss = loss + config.norm_weight * pixel_norm_per_image(seen.images).mean()
        if config.class_weight and seen.targets is not None:
            classes = nn.functional.cross_entropy(seen.logits, seen.targets)
            loss = loss + config.class_weight * classes
        return loss
