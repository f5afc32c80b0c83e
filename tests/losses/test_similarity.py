"""Similarities against loops over pairs."""

import pytest
import torch

from emptyset.losses.similarity import (
    pairwise_similarity,
    similarity_to_others,
    similarity_within_classes,
)


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return float(dot / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5)


def features() -> torch.Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)


def test_all_pairs_count_once() -> None:
    rows = features().tolist()
    pairs = [cosine(rows[i], rows[j]) for i in range(5) for j in range(i)]
    assert pairwise_similarity(features()).item() == pytest.approx(sum(pairs) / 10)


def test_pairs_count_by_how_much_of_a_class_they_share() -> None:
    rows = features().tolist()
    # Classes 1, 0, 1, 1, 2: three pairs.
    found = similarity_within_classes(features(), torch.tensor([1, 0, 1, 1, 2]), 4)
    pairs = [cosine(rows[i], rows[j]) for i, j in ((0, 2), (0, 3), (2, 3))]
    assert found.item() == pytest.approx(sum(pairs) / 3)
    # The first image shares 0.25 with the third and 0.75 with the fifth, nobody else anything.
    soft = torch.eye(5, dtype=torch.double)
    soft[0] = torch.tensor([0.0, 0.0, 0.25, 0.0, 0.75])
    found = similarity_within_classes(features(), soft, 5)
    expected = 0.25 * cosine(rows[0], rows[2]) + 0.75 * cosine(rows[0], rows[4])
    assert found.item() == pytest.approx(expected)


def test_without_a_shared_class_there_is_nothing_to_compare() -> None:
    given = features().requires_grad_()
    found = similarity_within_classes(given, torch.arange(5), 5)
    (gradient,) = torch.autograd.grad(found, [given])
    assert found.item() == 0.0
    assert not gradient.any()


def test_each_image_is_compared_with_the_mean_of_the_others() -> None:
    rows = features().tolist()
    expected = 0.0
    for i, row in enumerate(rows):
        others = [r for j, r in enumerate(rows) if j != i]
        expected += cosine(row, [sum(column) / 4 for column in zip(*others, strict=True)]) / 5
    assert similarity_to_others(features()).item() == pytest.approx(expected)


def test_the_gradient_treats_the_others_as_fixed() -> None:
    given = features().requires_grad_()
    (found,) = torch.autograd.grad(similarity_to_others(given), [given])
    whole = given.detach()
    for i in range(5):
        mean = torch.cat([whole[:i], whole[i + 1 :]]).mean(0)
        row = whole[i].clone().requires_grad_()
        (expected,) = torch.autograd.grad(torch.cosine_similarity(row, mean, dim=0) / 5, [row])
        torch.testing.assert_close(found[i], expected)
