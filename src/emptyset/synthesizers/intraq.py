"""IntraQ: synthetic images that differ within their class.

Paper: Zhong et al., "IntraQ: Learning Synthetic Images with Intra-Class Heterogeneity for
    Zero-Shot Network Quantization", CVPR 2022, arXiv:2111.09136; settings of the released code.
Idea: beside matching BatchNorm statistics, look at random crops (local object reinforcement), keep
    images away from the centre of their class but not too far (marginal distance constraint), and
    give each image a confidence of its own to reach (soft inception loss).
Needs: a teacher with BatchNorm layers, unless ``statistics_weight`` is 0; at least 2 classes,
    unless ``inception_weight`` and ``margin_weight`` are 0; a linear layer or a 1x1 convolution at
    the end, unless ``margin_weight`` is 0.
Differs from source:
    * All images draw a soft confidence, as the paper has it; the released code gives a random half
      the confidence 1 (``legacy``).
    * Crops of all images are taken at once, bilinearly, equal to torchvision's one by one but where
      none of its ten tries fits: then the last one is cut to fit, not the whole image taken.
    * Confidences are drawn once per batch; when the code draws them could not be seen.
    * Defaults are those for CIFAR-10. CIFAR-100: confidence 0.6, margins 0.02 and 1.0. The released
      ImageNet script has margins 0 and 2, which switches that loss off, and confidence 1 for all.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from emptyset.errors import UnsupportedModelError
from emptyset.inversion.config import PlateauConfig
from emptyset.inversion.labels import class_count, random_labels
from emptyset.inversion.local_reinforcement import LocalReinforcement
from emptyset.inversion.method import BatchStart, Group, Method, Seen
from emptyset.inversion.setting_checks import (
    require_not_negative,
    require_positive,
    require_share,
    require_use_of_classes,
)
from emptyset.inversion.synthesizer import InversionSynthesizer
from emptyset.inversion.updates import Adam
from emptyset.losses.batch_norm_statistics import gdfq_statistics
from emptyset.losses.heterogeneity import (
    class_centres,
    marginal_distance_loss,
    soft_inception_loss,
)
from emptyset.registry import synthesizers
from emptyset.teachers.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class IntraqConfig(PlateauConfig):
    """Settings of IntraQ. Defaults are those of the released code for CIFAR-10.

    Attributes:
        learning_rate: First step size [standardised pixel units per step].
        crop_probability: Of looking at crops in a step; 0: never.
        smallest_crop: η, least share of the area that a crop has.
        confidence: ε, least probability of the label to reach.
        lower_margin: λ_l, least cosine distance to the centre of the class.
        upper_margin: λ_u, greatest cosine distance to the centre of the class.
        statistics_weight: Of the BatchNorm statistics.
        inception_weight: Of the soft inception loss.
        margin_weight: Of the marginal distance constraint; with both 0: no classes.
        legacy: A random half of the images is to reach probability 1, as in the released code.
        classes: Make images of these classes only; empty: of all.
    """

    class_weights: ClassVar[tuple[str, ...]] = ("inception_weight", "margin_weight")

    learning_rate: float = 0.5
    crop_probability: float = 0.5
    smallest_crop: float = 0.5
    confidence: float = 0.95
    lower_margin: float = 0.05
    upper_margin: float = 0.8
    statistics_weight: float = 1.0
    inception_weight: float = 1.0
    margin_weight: float = 1.0
    legacy: bool = False
    classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "learning_rate", "smallest_crop")
        require_share(self, "smallest_crop", "crop_probability", "confidence")
        require_not_negative(self, "statistics_weight", "inception_weight", "margin_weight")
        require_not_negative(self, "lower_margin")
        require_use_of_classes(self)
        if not (self.statistics_weight or self.inception_weight):
            raise ValueError(
                "'statistics_weight' and 'inception_weight' are both 0: nothing shapes the first "
                "images. Set one of them."
            )
        if not self.lower_margin <= self.upper_margin:
            raise ValueError(
                f"'lower_margin' must not exceed 'upper_margin'. Got {self.lower_margin} and "
                f"{self.upper_margin}."
            )

    @classmethod
    def smallest(cls) -> "IntraqConfig":
        """Settings that finish in a blink."""
        return cls(steps=3, batch_size=4)


@synthesizers.register(
    "intraq",
    IntraqConfig,
    sentence="Random crops, soft confidences and distances to class centres keep images different.",
    source="IntraQ, Zhong et al. 2022, arXiv:2111.09136",
)
@dataclass(frozen=True)
class Intraq(InversionSynthesizer):
    """See the module docstring."""

    config: IntraqConfig

    def method(self, teacher: Teacher) -> Method:
        """The parts that the engine runs."""
        config = self.config
        looks = LocalReinforcement(
            teacher.input.shape, config.smallest_crop, config.crop_probability
        )
        if config.margin_weight and teacher.classifier_weight() is None:
            raise UnsupportedModelError(
                f"intraq keeps distances between features, but the last layer of {teacher.name} is "
                "no linear layer or 1x1 convolution with one output per class, whose input they "
                "are. Set margin_weight to 0."
            )
        classes = class_count(teacher, "intraq") if config.uses_classes else 0

        def context(start: BatchStart) -> dict[str, Tensor]:
            found = {"confidence": self.confidences(start.shape[0], start.generator)}
            return found | (_centres(start, classes) if config.margin_weight else {})

        return Method(
            name="intraq",
            objective=self.objective,
            groups=(Group(Adam(), config.plateau(config.learning_rate)),),
            steps=config.steps,
            batch_size=config.batch_size,
            targets=random_labels(teacher, "intraq", config),
            needs_batch_norm=config.statistics_weight > 0,
            draw=looks.draw if config.crop_probability else None,
            augment=looks.augment if config.crop_probability else None,
            context=context if config.uses_classes else None,
            context_follows=config.margin_weight > 0,
            low_pass=config.low_pass,
            joint_steps=config.turn,
        )

    def confidences(self, count: int, generator: torch.Generator) -> Tensor:
        """Probability that each image is to reach, ``(N,)``: t ~ U(ε, 1).

        ``legacy``: so for a random half of the images (rounded down), 1 for the others.
        """
        least = self.config.confidence
        drawn = least + (1 - least) * torch.rand(count, generator=generator)
        if not self.config.legacy:
            return drawn
        soft = torch.randperm(count, generator=generator) < count // 2
        return torch.where(soft, drawn, torch.ones(count))

    def objective(self, seen: Seen) -> Tensor:
        """Loss = L_BNS + L_SIL + L_MDC, each with its weight."""
        config, drawn = self.config, seen.drawn
        loss = seen.logits.new_zeros(())
        if config.statistics_weight:
            loss = config.statistics_weight * gdfq_statistics(seen.layers)
        if seen.targets is None:
            return loss
        if config.inception_weight:
            inception = soft_inception_loss(seen.logits, seen.targets, drawn["confidence"])
            loss = loss + config.inception_weight * inception
        if config.margin_weight and seen.features is not None:
            margin = marginal_distance_loss(
                seen.features,
                seen.targets,
                drawn["centres"],
                drawn["known"],
                lower=config.lower_margin,
                upper=config.upper_margin,
            )
            loss = loss + config.margin_weight * margin
        return loss


def _centres(start: BatchStart, classes: int) -> dict[str, Tensor]:
    """Centres of the classes, of all images of the batches before."""
    # One image of zeros tells the width where there is no batch before; it is not counted.
    blank = start.look(torch.zeros(1, *start.shape[1:]))
    width = (blank.logits if blank.features is None else blank.features).shape[1]
    # One place for all: small tensors kept from every batch would keep the memory between them.
    features = blank.logits.new_empty(len(start.earlier) * start.shape[0], width)
    labels = torch.empty(len(features), dtype=torch.long, device=features.device)
    done = 0
    for images, targets in start.earlier:
        found = start.look(images).features
        if found is not None and targets is not None:
            features[done : done + len(found)] = found
            labels[done : done + len(found)] = targets
            done += len(found)
    centres, known = class_centres(features[:done], labels[:done], classes)
    return {"centres": centres, "known": known}
