"""AdaSG's and AdaDFQ's losses, by plain numbers."""

import math

import pytest
import torch
from torch import Tensor

from emptyset.losses.logit_difference import (
    adaptability_margin,
    difference_entropy,
    difference_flatness_loss,
)

RANDOM = torch.Generator().manual_seed(0)
TEACHER = 2.0 * torch.randn(6, 5, generator=RANDOM, dtype=torch.double)
STUDENT = TEACHER + torch.randn(6, 5, generator=RANDOM, dtype=torch.double)


def entropies(temperature: float = 1.0) -> list[float]:
    found = []
    for ours, theirs in zip(STUDENT.tolist(), TEACHER.tolist(), strict=True):
        powers = [math.exp((b - a) / temperature) for a, b in zip(ours, theirs, strict=True)]
        shares = [power / sum(powers) for power in powers]
        found.append(-sum(share * math.log(share) for share in shares))
    return found


def test_entropy_is_that_of_the_softmax_of_the_difference() -> None:
    for temperature in (1.0, 3.0):
        found = difference_entropy(STUDENT, TEACHER, temperature=temperature)
        assert found.tolist() == pytest.approx(entropies(temperature), rel=1e-12)


def test_networks_that_differ_by_a_constant_agree() -> None:
    shifted = TEACHER + torch.randn(6, 1, generator=RANDOM, dtype=torch.double)
    assert difference_entropy(shifted, TEACHER).tolist() == pytest.approx([math.log(5)] * 6)
    loss = difference_flatness_loss(shifted, TEACHER, temperature=2.0)
    assert float(loss) == pytest.approx(0.0, abs=1e-12)


def test_the_margin_counts_what_lies_below_and_above_it() -> None:
    values, least = entropies(), min(entropies())
    normalised = [(value - least) / (math.log(5) - least) for value in values]
    for low, high in ((0.3, 0.8), (0.0, 0.1), (0.5, 0.5)):
        expected = sum(max(low - h, 0) + max(h - high, 0) for h in normalised) / 6
        found = adaptability_margin(STUDENT, TEACHER, low=low, high=high)
        assert float(found) == pytest.approx(expected, rel=1e-12)


def gradient(through_minimum: bool) -> Tensor:
    ours = STUDENT.clone().requires_grad_()
    loss = adaptability_margin(ours, TEACHER, low=0.4, high=0.6, through_minimum=through_minimum)
    return torch.autograd.grad(loss, [ours])[0]


def test_gradients_leave_the_smallest_entropy_alone_unless_asked() -> None:
    least = entropies().index(min(entropies()))
    # A constant minimum: the image itself lies at 0, so it is pulled up by its own entropy alone.
    span = math.log(5) - min(entropies())
    ours = STUDENT.clone().requires_grad_()
    own = difference_entropy(ours, TEACHER)[least] / span
    (pull,) = torch.autograd.grad(-own / 6, [ours])
    torch.testing.assert_close(gradient(through_minimum=False)[least], pull[least])
    assert not torch.allclose(gradient(through_minimum=True)[least], pull[least])


def test_as_released_the_margins_gradient_is_that_of_finite_differences() -> None:
    step, found = 1e-6, gradient(through_minimum=True)
    for n in range(6):
        for k in range(5):
            ends = []
            for sign in (1, -1):
                moved = STUDENT.clone()
                moved[n, k] += sign * step
                ends.append(float(adaptability_margin(moved, TEACHER, low=0.4, high=0.6)))
            assert float(found[n, k]) == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-6)


def test_where_both_agree_on_every_image_nothing_is_divided_by_zero() -> None:
    ours = TEACHER.float().clone().requires_grad_()
    loss = adaptability_margin(ours, TEACHER.float(), low=0.3, high=0.8)
    assert loss.item() == pytest.approx(0.3, abs=0.01)
    assert bool(torch.isfinite(torch.autograd.grad(loss, [ours])[0]).all())


def test_flatness_is_what_is_missing_to_the_largest_entropy() -> None:
    for temperature in (1.0, 4.0):
        missing = [math.log(5) - value for value in entropies(temperature)]
        found = difference_flatness_loss(STUDENT, TEACHER, temperature=temperature)
        assert float(found) == pytest.approx(temperature**2 * sum(missing) / 6, rel=1e-9)


def test_at_high_temperature_flatness_is_half_the_variance_of_the_difference() -> None:
    expected = 0.5 * (TEACHER - STUDENT).var(dim=1, correction=0).mean()
    # In float32, as trained: the form without cancellation.
    found = difference_flatness_loss(STUDENT.float(), TEACHER.float(), temperature=300.0)
    assert float(found) == pytest.approx(float(expected), rel=0.02)
