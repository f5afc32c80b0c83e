"""Similarities against loops over pairs."""

import pytest
import torch

from emptyset.losses.similarity import pairwise_similarity, similarity_to_others


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return float(dot / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5)


def features() -> torch.Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)


def test_all_pairs_count_once() -> None:
    rows = features().tolist()
    pairs = [cosine(rows[i], rows[j]) for i in range(5) for j in range(i)]
    assert pairwise_similarity(features()).item() == pytest.approx(sum(pairs) / 10)


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
