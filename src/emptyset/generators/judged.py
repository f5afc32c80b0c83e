"""What a generator is judged by: weighted loss terms over what teacher and student say."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from emptyset.losses.layer_statistics import LayerStatistics


@dataclass(frozen=True)
class Judged:
    """One batch, as teacher and student see it; everything float32.

    What a term does not name in ``Term.needs`` may be missing (None, or empty).

    Attributes:
        images: ``(N, C, H, W)`` [teacher's normalised units].
        targets: ``(N,)`` class indices, ``(N, K)`` probabilities, or None.
        teacher_logits: ``(N, K)``.
        layers: Statistics of every BatchNorm input of the teacher, in the order of the calls.
        penultimate: ``(N, F)``, what the teacher's last layer is given (its logits without one).
        student_logits: ``(N, K)``.
        teacher_features: Outputs of the teacher's stages.
        student_features: The same of the student.
    """

    images: Tensor
    targets: Tensor | None
    teacher_logits: Tensor
    layers: tuple[LayerStatistics, ...] = ()
    penultimate: Tensor | None = None
    student_logits: Tensor | None = None
    teacher_features: tuple[Tensor, ...] = ()
    student_features: tuple[Tensor, ...] = ()


STATISTICS, PENULTIMATE = "statistics", "penultimate"
STUDENT, FEATURES = "student", "features"


@dataclass(frozen=True)
class Term:
    """One part of a generator's loss.

    Attributes:
        name: For messages.
        weight: What it counts.
        of: The loss of a batch, a scalar to be made small; must not wait for the device.
        needs: Besides teacher logits: ``statistics`` (of the teacher's BatchNorm inputs),
            ``penultimate`` (the teacher's), ``student`` (its logits), ``features`` (of both).
        setting: Of the method, that is 0 where the term is not wanted; for messages.
    """

    name: str
    weight: float
    of: Callable[[Judged], Tensor]
    needs: frozenset[str] = frozenset()
    setting: str = ""
