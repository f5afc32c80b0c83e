"""Knowledge Within: Gaussians of BatchNorm inputs, and inception.

Paper: Haroush et al., "The Knowledge Within: Methods for Data-Free Model Compression", CVPR 2020,
    arXiv:1912.01274. The paper's text could not be read, and no code was released.
Idea: every BatchNorm layer stored a Gaussian per channel; the images should cause the same ones
    (their KL divergence is small), and show a class (inception).
Needs: a teacher with BatchNorm layers, unless ``statistics_weight`` is 0; at least 2 classes,
    unless ``class_weight`` is 0.
Schemes of the paper: Gaussian noise is the method ``noise``; inception is ``statistics_weight=0``;
    BN statistics is ``class_weight=0``; both together (the default) is what later papers compare
    with.
Reconstructed (ours): optimiser, schedule, steps and batch size are IntraQ's; the weights; the
    smoothness prior, which is off.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from emptyset.inversion.config import PlateauConfig
from emptyset.inversion.labels import random_labels
from emptyset.inversion.method import Group, Method, Seen
from emptyset.inversion.setting_checks import (
    require_an_aim,
    require_not_negative,
    require_positive,
    require_use_of_classes,
)
from emptyset.inversion.synthesizer import InversionSynthesizer
from emptyset.inversion.updates import Adam
from emptyset.losses.blur_distance import blur_distance
from emptyset.losses.gaussian_divergence import gaussian_divergence
from emptyset.registry import synthesizers
from emptyset.teachers.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class KnowledgeWithinConfig(PlateauConfig):
    """Settings of Knowledge Within. None is known; defaults are a labelled reconstruction.

    Attributes:
        learning_rate: First step size [standardised pixel units per step].
        statistics_weight: Of the divergence of BatchNorm statistics.
        least_variance: Lower limit of the variances in it [feature units squared].
        class_weight: Of the cross-entropy (inception).
        smoothness_weight: Of the distance between images and blurred images.
        blur: Standard deviation of that blur [pixels].
        classes: Make images of these classes only; empty: of all.
    """

    class_weights: ClassVar[tuple[str, ...]] = ("class_weight",)

    learning_rate: float = 0.5
    statistics_weight: float = 1.0
    least_variance: float = 1e-5
    class_weight: float = 1.0
    smoothness_weight: float = 0.0
    blur: float = 1.0
    classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        require_use_of_classes(self)
        require_positive(self, "learning_rate", "least_variance", "blur")
        require_not_negative(self, "statistics_weight", "class_weight", "smoothness_weight")
        require_an_aim(self, "statistics_weight", "class_weight")

    @classmethod
    def smallest(cls) -> "KnowledgeWithinConfig":
        """Settings that finish in a blink."""
        return cls(steps=3, batch_size=4)


@synthesizers.register(
    "knowledge_within",
    KnowledgeWithinConfig,
    sentence="Matches the Gaussians that BatchNorm layers stored, and shows a class.",
    source="The Knowledge Within, Haroush et al. 2020, arXiv:1912.01274; settings reconstructed",
)
@dataclass(frozen=True)
class KnowledgeWithin(InversionSynthesizer):
    """See the module docstring."""

    config: KnowledgeWithinConfig

    def method(self, teacher: Teacher) -> Method:
        """The parts that the engine runs."""
        config = self.config
        return Method(
            name="knowledge_within",
            objective=self.objective,
            groups=(Group(Adam(), config.plateau(config.learning_rate)),),
            steps=config.steps,
            batch_size=config.batch_size,
            targets=random_labels(teacher, "knowledge_within", config),
            low_pass=config.low_pass,
            joint_steps=config.turn,
            needs_batch_norm=config.statistics_weight > 0,
        )

    def objective(self, seen: Seen) -> Tensor:
        """Loss = statistics_weight · KL + class_weight · CE + smoothness_weight · blur distance."""
        config = self.config
        terms = []
        if config.statistics_weight:
            divergence = gaussian_divergence(seen.layers, least_variance=config.least_variance)
            terms.append(config.statistics_weight * divergence)
        if config.class_weight and seen.targets is not None:
            classes = nn.functional.cross_entropy(seen.logits, seen.targets)
            terms.append(config.class_weight * classes)
        if config.smoothness_weight:
            distance = blur_distance(seen.images, spread=config.blur)
            terms.append(config.smoothness_weight * distance)
        return torch.stack(terms).sum()
