"""Settings that generator methods share; a method adds its own and changes defaults."""

from dataclasses import dataclass
from typing import ClassVar

from emptyset.generators.backbones import AUTO, BACKBONES
from emptyset.inversion.setting_checks import (
    require_choice,
    require_not_negative,
    require_positive,
    require_share,
)


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Settings of every generator that is trained beside the student.

    Attributes:
        learning_rate: Of Adam, at the start.
        momentum: β₁ and β₂ of Adam.
        milestones: Shares of all lessons after which the learning rate falls to a tenth.
        similarity_weight: Of the images' similarity in the teacher's last features (SimLoss1 of
            "Enhancing Diversity for Data-free Quantization"); not in the method's own paper.
        class_similarity_weight: Of their similarity to the others of their class; in no paper.
    """

    learning_rate: float = 1e-3
    momentum: tuple[float, float] = (0.5, 0.999)
    milestones: tuple[float, ...] = (0.25, 0.5, 0.75)
    similarity_weight: float = 0.0
    class_similarity_weight: float = 0.0

    def __post_init__(self) -> None:
        require_positive(self, "learning_rate")
        require_not_negative(self, "similarity_weight", "class_similarity_weight")
        if not all(0 <= beta < 1 for beta in self.momentum):
            raise ValueError(f"'momentum' must lie in 0..1, below 1. Got {self.momentum}.")
        if not all(0 < share <= 1 for share in self.milestones):
            raise ValueError(f"'milestones' are shares in 0..1. Got {self.milestones}.")


@dataclass(frozen=True, kw_only=True)
class LabelledGeneratorConfig(GeneratorConfig):
    """Settings of generators that are asked for classes (GDFQ's loss).

    Attributes:
        label_weight: Of the cross entropy between the teacher's answer and the label.
        statistics_weight: α, of the distance from the stored BatchNorm statistics.
    """

    # Weights of the loss; one of them must be above 0.
    shaping: ClassVar[tuple[str, ...]] = ("label_weight", "statistics_weight")

    label_weight: float = 1.0
    statistics_weight: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = self.shaping
        require_not_negative(self, *weights)
        if not any(getattr(self, name) for name in weights):
            named = " and ".join(f"'{name}'" for name in weights)
            raise ValueError(
                f"{named} are {'both' if len(weights) == 2 else 'all'} 0: nothing shapes the "
                "images. Set one of them."
            )


@dataclass(frozen=True, kw_only=True)
class UpsampledGeneratorConfig(LabelledGeneratorConfig):
    """Settings of methods that train GDFQ's network.

    Attributes:
        backbone: ``cifar`` (the embedding of the class scales the noise), ``imagenet``
            (class-conditional BatchNorm), or ``auto``: cifar up to 64 pixels.
        latent: Length of the noise.
        widths: Channels of the generator's two stages.
    """

    backbone: str = AUTO
    latent: int = 100
    widths: tuple[int, int] = (128, 64)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, "backbone", BACKBONES)
        require_positive(self, "latent")
        require_widths(self.widths)


@dataclass(frozen=True, kw_only=True)
class AdaptiveGeneratorConfig(UpsampledGeneratorConfig):
    """Settings of generators that keep their images useful to the student (AdaSG, AdaDFQ).

    Attributes:
        label_weight: Of the cross entropy of the teacher alone with the label; not in the papers.
        statistics_weight: γ, of the distance from the stored BatchNorm statistics.
        difference_weight: α_ds, of the cross entropy of ``z_P − z_Q`` with the label.
        sum_weight: α_as, of the cross entropy of ``z_P + z_Q`` with the label.
        margin_weight: Of the margin within which disagreement is wanted.
        entropy_low: λ_l, where the margin begins, 0..1.
        entropy_high: λ_u, where it ends, 0..1.
        legacy: Let gradients pass through the batch's smallest entropy, as released.
    """

    shaping: ClassVar[tuple[str, ...]] = (
        "label_weight", "statistics_weight", "difference_weight", "sum_weight", "margin_weight",
    )  # fmt: skip

    label_weight: float = 0.0
    statistics_weight: float = 1.0
    difference_weight: float = 0.1
    sum_weight: float = 0.1
    margin_weight: float = 1.0
    entropy_low: float = 0.3
    entropy_high: float = 0.8
    legacy: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share(self, "entropy_low", "entropy_high")
        if self.entropy_low > self.entropy_high:
            raise ValueError(
                f"'entropy_low' must not exceed 'entropy_high'. Got {self.entropy_low} and "
                f"{self.entropy_high}."
            )


@dataclass(frozen=True, kw_only=True)
class AdversarialGeneratorConfig(GeneratorConfig):
    """Settings of generators that look for what the student gets wrong (ZAQ's loss).

    Attributes:
        relation_weight: α, of the distance of the feature maps' relations.
        activation_weight: β, of the strength of the teacher's last features.
        label_weight: ρ, of the cross entropy between the teacher's answer and the label.
        student_steps: Batches that only the student learns from, before one for the generator.
    """

    relation_weight: float = 1.0
    activation_weight: float = 0.1
    label_weight: float = 0.0
    student_steps: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative(self, "relation_weight", "activation_weight", "label_weight")
        require_positive(self, "student_steps")


def require_widths(widths: tuple[int, ...]) -> None:
    """Refuse layers without channels.

    Raises:
        ValueError: Naming the setting.
    """
    if min(widths) < 1:
        raise ValueError(f"'widths' must be positive. Got {widths}.")
