"""Settings that generator methods share; a method adds its own and changes defaults."""

from dataclasses import dataclass

from emptyset.inversion.setting_checks import require_not_negative, require_positive


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Settings of every generator that is trained beside the student.

    Attributes:
        learning_rate: Of Adam, at the start.
        momentum: β₁ and β₂ of Adam.
        milestones: Shares of all lessons after which the learning rate falls to a tenth.
    """

    learning_rate: float = 1e-3
    momentum: tuple[float, float] = (0.5, 0.999)
    milestones: tuple[float, ...] = (0.25, 0.5, 0.75)

    def __post_init__(self) -> None:
        require_positive(self, "learning_rate")
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

    label_weight: float = 1.0
    statistics_weight: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative(self, "label_weight", "statistics_weight")
        if not (self.label_weight or self.statistics_weight):
            raise ValueError(
                "'label_weight' and 'statistics_weight' are both 0: nothing shapes the images. Set "
                "one of them."
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
