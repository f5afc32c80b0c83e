"""Targets that a network of K classes can be taught, and those that it cannot."""

import pytest
import torch
from torch import Tensor

from emptyset.errors import ImagesError
from emptyset.images.targets import require_targets

CLASSES = 4


def soft(row: int = 0, column: int = 0, value: float = 0.25, width: int = CLASSES) -> Tensor:
    """Three rows of probabilities with one value changed."""
    probabilities = torch.full((3, width), 0.25)
    probabilities[row, column] = value
    return probabilities


@pytest.mark.parametrize(
    "targets",
    [
        torch.arange(CLASSES),
        torch.tensor([3, 0, 3], dtype=torch.uint8),
        torch.tensor([1, 2], dtype=torch.int32),
        torch.empty(0, dtype=torch.long),
        soft(),
        soft().double(),
        # One class for sure is as good a target as any.
        torch.eye(CLASSES).half(),
    ],
    ids=lambda targets: f"{targets.dtype} {tuple(targets.shape)}",
)
def test_classes_and_probabilities_of_the_teacher_pass(targets: Tensor) -> None:
    require_targets(targets, CLASSES, who="somebody", advice="Or not.")


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (torch.tensor([0, 4, 3]), r"from 0 to 4, but the teacher has 4 classes \(0 to 3\)"),
        (torch.tensor([2, -1]), "from -1 to 2, but"),
        # What torch's cross entropy would leave out without a word.
        (torch.tensor([-100, 1]), "from -100 to 1, but"),
        (torch.tensor([1.0, 2.0]), "must have an integer type. Got float32"),
        (torch.tensor([True, False]), "must have an integer type. Got bool"),
        (soft(width=5), r"shape \(N,\) or \(N, 4\). Got \(3, 5\)"),
        (torch.zeros(2, 3, 4), r"Got \(2, 3, 4\)"),
        (torch.eye(CLASSES, dtype=torch.long), "must have a floating-point type. Got int64"),
        (soft(1, 2, -0.5), r"1 of 3 soft labels hold .*negative.* \(first: image 1\)"),
        (soft(2, 3, torch.nan), r"not finite \(first: image 2\)"),
        (soft(0, 0, torch.inf), r"not finite \(first: image 0\)"),
    ],
)
def test_everything_else_is_refused_by_name(targets: Tensor, said: str) -> None:
    with pytest.raises(ImagesError, match=f"^somebody: .*{said}.* Correct the labels. Or not.$"):
        require_targets(targets, CLASSES, who="somebody", advice="Or not.")
