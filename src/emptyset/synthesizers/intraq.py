"""IntraQ: synthetic images that differ within their class.

Paper: Zhong et al., "IntraQ: Learning Synthetic Images with Intra-Class Heterogeneity for
    Zero-Shot Network Quantization", CVPR 2022, arXiv:2111.09136; settings of the released code.
Idea: beside matching BatchNorm statistics, look at random crops (local object reinforcement), keep
    images away from the centre of their class but not too far (marginal distance constraint), and
    give each image a confidence of its own to reach (soft inception loss).
Needs: a teacher with BatchNorm2d layers, a linear classifier and at least 2 classes.
Differs from source:
    * All images draw a soft confidence, as the paper has it; the released code gives a random half
      the confidence 1 (``legacy``).
    * Crops of all images are taken at once, bilinearly, equal to torchvision's one by one.
    * Confidences are drawn once per batch; when the code draws them could not be seen.
    * Defaults are those for CIFAR-10. CIFAR-100: confidence 0.6, margins 0.02 and 1.0. The released
      ImageNet script has confidence 1 and margins 0 and 2, which switches both losses off.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from emptyset.errors import UnsupportedModelError
from emptyset.images.image_set import ImageSet
from emptyset.inversion.batch_plan import require_count
from emptyset.inversion.engine import invert
from emptyset.inversion.labels import class_count, random_labels
from emptyset.inversion.local_reinforcement import LocalReinforcement
from emptyset.inversion.method import BatchStart, Group, Method, Seen
from emptyset.inversion.schedules import Plateau
from emptyset.inversion.setting_checks import (
    require_low_pass,
    require_not_negative,
    require_positive,
    require_share,
)
from emptyset.inversion.updates import Adam
from emptyset.losses.batch_norm_statistics import gdfq_statistics
from emptyset.losses.heterogeneity import (
    class_centres,
    marginal_distance_loss,
    soft_inception_loss,
)
from emptyset.monitor import SILENT, Monitor
from emptyset.registry import synthesizers
from emptyset.teachers.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class IntraqConfig:
    """Settings of IntraQ. Defaults are those of the released code for CIFAR-10.

    Attributes:
        steps: Adam steps per batch.
        learning_rate: First step size [standardised pixel units per step].
        plateau_patience: Steps without a new best loss before the step size falls.
        plateau_factor: What it is multiplied by.
        plateau_minimum: Its lower limit [standardised pixel units per step].
        batch_size: Most images optimised together.
        crop_probability: Of looking at crops in a step; 0: never.
        smallest_crop: η, least share of the area that a crop has.
        confidence: ε, least probability of the label to reach.
        lower_margin: λ_l, least cosine distance to the centre of the class.
        upper_margin: λ_u, greatest cosine distance to the centre of the class.
        statistics_weight: Of the BatchNorm statistics.
        inception_weight: Of the soft inception loss.
        margin_weight: Of the marginal distance constraint.
        legacy: A random half of the images is to reach probability 1, as in the released code.
        classes: Make images of these classes only; empty: of all.
        low_pass: Cut-off of SynQ's filter over finished images [cycles per image], or null.
    """

    steps: int = 1000
    learning_rate: float = 0.5
    plateau_patience: int = 50
    plateau_factor: float = 0.1
    plateau_minimum: float = 1e-4
    batch_size: int = 256
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
    low_pass: float | None = None

    def __post_init__(self) -> None:
        require_positive(self, "steps", "learning_rate", "plateau_patience", "batch_size")
        require_positive(self, "smallest_crop")
        require_share(self, "smallest_crop", "crop_probability", "confidence")
        require_not_negative(self, "plateau_minimum", "statistics_weight", "inception_weight")
        require_not_negative(self, "margin_weight", "lower_margin")
        require_low_pass(self)
        if not 0 < self.plateau_factor < 1:
            raise ValueError(f"'plateau_factor' must lie in 0..1. Got {self.plateau_factor}.")
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
class Intraq:
    """See the module docstring."""

    config: IntraqConfig

    def synthesize(
        self, teacher: Teacher, count: int, *, seed: int, monitor: Monitor = SILENT
    ) -> ImageSet:
        """Exactly ``count`` images, with the class indices that they were made for.

        Args:
            teacher: With BatchNorm2d layers, a linear classifier and at least 2 classes.
            count: At least 2.
            seed: Seed of everything random.
            monitor: Hears of progress, keeps and restores states.

        Raises:
            UnsupportedModelError: If the teacher lacks what the method needs.
            ImagesError: If the count or a class cannot be, or the loss is not finite.
        """
        require_count("intraq", count)
        method = self.method(teacher)
        settings = asdict(self.config)
        return invert(method, teacher, count, seed=seed, settings=settings, monitor=monitor)

    def method(self, teacher: Teacher) -> Method:
        """The parts that the engine runs."""
        config = self.config
        looks = LocalReinforcement(
            teacher.input.shape, config.smallest_crop, config.crop_probability
        )
        if config.margin_weight and teacher.classifier_weight() is None:
            raise UnsupportedModelError(
                f"intraq keeps distances between features, but {teacher.name} has no linear "
                "classifier whose input they are. Set margin_weight to 0."
            )
        classes = class_count(teacher, "intraq")

        def context(start: BatchStart) -> dict[str, Tensor]:
            found = {"confidence": self.confidences(start.shape[0], start.generator)}
            return found | (_centres(start, classes) if config.margin_weight else {})

        schedule = Plateau(
            config.learning_rate,
            config.plateau_factor,
            config.plateau_patience,
            config.plateau_minimum,
        )
        return Method(
            name="intraq",
            objective=self.objective,
            groups=(Group(Adam(), schedule),),
            steps=config.steps,
            batch_size=config.batch_size,
            targets=random_labels(teacher, "intraq", config.classes),
            draw=looks.draw if config.crop_probability else None,
            augment=looks.augment if config.crop_probability else None,
            context=context,
            low_pass=config.low_pass,
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
        loss = config.statistics_weight * gdfq_statistics(seen.layers)
        if seen.targets is None:
            return loss
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
    features = [(blank.logits if blank.features is None else blank.features)[:0]]
    labels = [torch.zeros(0, dtype=torch.long, device=features[0].device)]
    for images, targets in start.earlier:
        found = start.look(images).features
        if found is not None and targets is not None:
            features.append(found)
            labels.append(targets.to(found.device))
    centres, known = class_centres(torch.cat(features), torch.cat(labels), classes)
    return {"centres": centres, "known": known}
