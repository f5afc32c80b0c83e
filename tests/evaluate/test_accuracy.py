"""Accuracy by counting."""

import pytest
import torch

from emptyset.errors import ImagesError
from emptyset.evaluate.accuracy import accuracy, rank_of_label
from emptyset.images.image_set import ImageSet

LOGITS = torch.randn(23, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(8, (23,), generator=torch.Generator().manual_seed(1))


def numbered(labels: torch.Tensor | None = LABELS) -> ImageSet:
    """Image n is filled with n, so that a network can look up its logits."""
    return ImageSet(torch.arange(23.0).view(-1, 1, 1, 1).expand(23, 1, 2, 2).clone(), labels)


def look_up(images: torch.Tensor) -> torch.Tensor:
    return LOGITS[images[:, 0, 0, 0].long()]


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_counts_right_answers_whatever_the_batches(batch_size: int) -> None:
    orders = [sorted(range(8), key=lambda k, row=row: -row[k]) for row in LOGITS.tolist()]
    places = [order.index(label) for order, label in zip(orders, LABELS.tolist(), strict=True)]
    found = accuracy(look_up, numbered(), batch_size=batch_size)
    assert found.count == 23
    assert found.top1 == sum(p == 0 for p in places) / 23
    assert found.top5 == sum(p < 5 for p in places) / 23


def test_a_network_that_says_nothing_earns_only_class_zero() -> None:
    flat = torch.zeros(4, 6)
    assert rank_of_label(flat, torch.tensor([0, 1, 3, 5])).tolist() == [0, 1, 3, 5]


def test_not_a_number_is_never_right() -> None:
    logits = torch.tensor([[float("nan"), 1.0], [float("nan"), 1.0]])
    assert (rank_of_label(logits, torch.tensor([0, 1])) > 0).all()


def test_top_five_of_five_classes_says_nothing() -> None:
    found = accuracy(lambda x: look_up(x)[:, :5], numbered(LABELS % 5))
    assert found.top5 is None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "needs one class index"),
        (torch.full((23, 8), 1 / 8), "needs one class index"),
        (torch.full((23,), 8), "0 to 7"),
        (torch.full((23,), -1), "from -1"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(labels: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ImagesError, match=message):
        accuracy(look_up, numbered(labels))


def test_outputs_that_are_no_logits_are_refused() -> None:
    with pytest.raises(ImagesError, match=r"shape \(23, K\).*no classifier"):
        accuracy(lambda x: x, numbered())
