"""Diversity: by hand, with features that are known."""

import pytest
import torch
from torch import nn

from emptyset.errors import ImagesError
from emptyset.evaluate.diversity import diversity
from emptyset.images.image_set import ImageSet
from emptyset.teachers.teacher import InputSpec, Teacher


def teacher() -> Teacher:
    """Features are the two pixels themselves, logits too."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        module[1].weight.copy_(torch.eye(2))
    spec = InputSpec((1, 1, 2), (0.5,), (0.25,))
    return Teacher("test:eye", module.requires_grad_(False).eval(), spec)


def images(targets: torch.Tensor | None) -> ImageSet:
    rows = [[1.0, 0.0], [2.0, 0.0], [3.0, 3.0], [0.0, 1.0]]
    return ImageSet(torch.tensor(rows).view(4, 1, 1, 2), targets)


HALF = 0.5**0.5


@pytest.mark.parametrize("batch_size", [3, 256])
def test_cosines_and_agreement_are_those_counted_by_hand(batch_size: int) -> None:
    found = diversity(images(torch.tensor([0, 0, 1, 1])), teacher(), batch_size=batch_size)
    # Pairs: 01 1, 02 and 12 and 23 1/√2, 03 and 13 0.
    assert found.similarity == pytest.approx((1 + 3 * HALF) / 6)
    assert found.similarity_within_class == pytest.approx((1 + HALF) / 2)
    others = [(5, 4), (4, 4), (3, 1), (6, 3)]
    rows = [(1, 0), (1, 0), (1, 1), (0, 1)]
    expected = 0.0
    for (a, b), (c, d) in zip(rows, others, strict=True):
        expected += (a * c + b * d) / ((a * a + b * b) * (c * c + d * d)) ** 0.5 / 4
    assert found.similarity_to_others == pytest.approx(expected)
    # Image 2 has equal logits, and the first class wins.
    assert found.class_agreement == pytest.approx(3 / 4)
    assert (found.classes, found.count, found.labelled) == (2, 4, True)


def test_without_targets_the_teachers_classes_are_taken() -> None:
    found = diversity(images(None), teacher())
    assert found.class_agreement is None
    assert not found.labelled
    assert found.similarity_within_class == pytest.approx((1 + 2 * HALF) / 3)
    assert found.to_json()["count"] == 4


def test_soft_targets_count_as_their_likeliest_class() -> None:
    soft = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.0, 1.0]])
    hard = diversity(images(torch.tensor([0, 0, 1, 1])), teacher())
    assert diversity(images(soft), teacher()) == hard


def test_classes_of_one_image_have_no_similarity_within() -> None:
    pair = ImageSet(torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(2, 1, 1, 2), torch.tensor([0, 1]))
    assert diversity(pair, teacher()).similarity_within_class is None


def test_one_image_is_like_nothing() -> None:
    with pytest.raises(ImagesError, match="at least 2"):
        diversity(ImageSet(torch.zeros(1, 1, 1, 2)), teacher())
