"""Settings that inversion methods share; a method adds its own and changes defaults."""

from dataclasses import dataclass
from typing import ClassVar

from emptyset.inversion.schedules import Plateau
from emptyset.inversion.setting_checks import (
    require_choice,
    require_not_negative,
    require_positive,
)

JOINT = "joint"


@dataclass(frozen=True, kw_only=True)
class InversionConfig:
    """Settings of every inversion method.

    Attributes:
        steps: Steps per batch.
        batch_size: Most images optimised together.
        statistics: Whose BatchNorm statistics are matched: those of a ``batch``, or of all batches
            together (``joint``, ours), which are then optimised in turn.
        joint_steps: Steps of a batch before it is the next one's turn (``joint``).
        low_pass: Cut-off of SynQ's filter over finished images [cycles per image], or null.
        spectrum: Optimise cosine coefficients instead of pixels, scaled by the frequency to the
            power of minus this, as photographs are (CIFAR-10: 1.5); 0: pixels. Ours. Step sizes are
            then those of coefficients, and pixels stay between black and white.
    """

    statistics_known: ClassVar[tuple[str, ...]] = ("batch", JOINT)
    class_weights: ClassVar[tuple[str, ...]] = ()
    """Weights of the terms that ask for classes; where all are 0, images are made for none."""

    steps: int = 1000
    batch_size: int = 256
    statistics: str = "batch"
    joint_steps: int = 10
    low_pass: float | None = None
    spectrum: float = 0.0

    def __post_init__(self) -> None:
        require_positive(self, "steps", "batch_size", "joint_steps")
        require_choice(self, "statistics", self.statistics_known)
        require_not_negative(self, "spectrum")
        if self.low_pass is not None:
            require_positive(self, "low_pass")
        matched = getattr(self, "statistics_weight", 1.0) > 0
        if self.batch_size == 1 and self.statistics == "batch" and matched:
            raise ValueError(
                "'batch_size' is 1, so every image alone would have to cause the statistics of all "
                "the data. Use at least 2, or statistics 'joint'."
            )

    @property
    def uses_classes(self) -> bool:
        """Whether images are made for classes."""
        return any(getattr(self, weight) for weight in self.class_weights)

    @property
    def turn(self) -> int | None:
        """``Method.joint_steps``: None unless statistics are joint."""
        return self.joint_steps if self.statistics == JOINT else None


@dataclass(frozen=True, kw_only=True)
class PlateauConfig(InversionConfig):
    """Settings of methods whose steps get smaller when the loss stops falling.

    Attributes:
        plateau_patience: Steps without a new best loss before the step size falls.
        plateau_factor: What it is multiplied by.
        plateau_minimum: Its lower limit [standardised pixel units per step].
    """

    plateau_patience: int = 50
    plateau_factor: float = 0.1
    plateau_minimum: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "plateau_patience")
        require_not_negative(self, "plateau_minimum")
        if not 0 < self.plateau_factor < 1:
            raise ValueError(f"'plateau_factor' must lie in 0..1. Got {self.plateau_factor}.")

    def plateau(self, rate: float) -> Plateau:
        """The schedule that starts with ``rate``."""
        return Plateau(rate, self.plateau_factor, self.plateau_patience, self.plateau_minimum)
