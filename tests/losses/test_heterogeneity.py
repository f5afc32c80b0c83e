"""IntraQ's losses against plain numbers."""

import math

import pytest
import torch

from emptyset.losses.heterogeneity import (
    class_centres,
    marginal_distance_loss,
    soft_inception_loss,
)


def test_only_the_label_counts_in_the_soft_inception_loss() -> None:
    logits = torch.tensor([[0.5, 2.0, -1.0], [1.0, 0.0, 0.3]], dtype=torch.double)
    labels, targets = torch.tensor([1, 2]), torch.tensor([0.9, 0.6], dtype=torch.double)
    expected = 0.0
    for values, y, t in zip(logits.tolist(), labels.tolist(), targets.tolist(), strict=True):
        p = math.exp(values[y]) / sum(math.exp(v) for v in values)
        expected += (p - t) ** 2 / 2
    assert soft_inception_loss(logits, labels, targets).item() == pytest.approx(expected)


def test_the_margins_bound_the_cosine_distance_to_known_centres() -> None:
    def direction(degrees: float) -> list[float]:
        return [3 * math.cos(math.radians(degrees)), 3 * math.sin(math.radians(degrees))]

    centres = torch.tensor([[2.0, 0.0], [9.0, 9.0], [0.0, 0.0]], dtype=torch.double)
    known = torch.tensor([1.0, 1.0, 0.0])
    # Too near, between, too far from class 0; between for class 1; class 2 has no centre.
    features = torch.tensor([direction(a) for a in (5, 60, 170, 90, 33)], dtype=torch.double)
    labels = torch.tensor([0, 0, 0, 1, 2])
    loss = marginal_distance_loss(features, labels, centres, known, lower=0.1, upper=1.2)
    near = 0.1 - (1 - math.cos(math.radians(5)))
    far = (1 - math.cos(math.radians(170))) - 1.2
    assert loss.item() == pytest.approx((near + far) / 4, rel=1e-9)
    nothing = marginal_distance_loss(
        features, labels, centres, torch.zeros(3), lower=0.1, upper=1.2
    )
    assert nothing.item() == 0.0


def test_a_feature_of_zeros_has_a_finite_gradient() -> None:
    features = torch.zeros(2, 3, requires_grad=True)
    loss = marginal_distance_loss(
        features, torch.tensor([0, 1]), torch.zeros(2, 3), torch.ones(2), lower=0.1, upper=0.5
    )
    loss.backward()
    assert features.grad is not None
    assert bool(torch.isfinite(features.grad).all())


def test_centres_are_means_of_each_class() -> None:
    features = torch.tensor([[1.0, 2.0], [3.0, 4.0], [10.0, 0.0]])
    centres, known = class_centres(features, torch.tensor([2, 2, 0]), 4)
    assert centres.tolist() == [[10.0, 0.0], [0.0, 0.0], [2.0, 3.0], [0.0, 0.0]]
    assert known.tolist() == [1.0, 0.0, 1.0, 0.0]
    empty, none = class_centres(features[:0], torch.zeros(0, dtype=torch.long), 3)
    assert empty.shape == (3, 2)
    assert none.tolist() == [0.0, 0.0, 0.0]
