"""The loss of hard samples against plain numbers."""

import math

import pytest
import torch

from emptyset.losses.hard_samples import hard_sample_loss

LOGITS = torch.tensor([[0.5, 2.0, -1.0], [1.0, 0.0, 0.3]], dtype=torch.double)
LABELS = torch.tensor([1, 2])


@pytest.mark.parametrize("exponent", [0.0, 0.5, 2.0])
def test_each_image_is_weighted_by_its_own_difficulty(exponent: float) -> None:
    expected = 0.0
    for values, y in zip(LOGITS.tolist(), LABELS.tolist(), strict=True):
        p = math.exp(values[y]) / sum(math.exp(v) for v in values)
        expected -= (1 - p) ** exponent * math.log(p) / 2
    found = hard_sample_loss(LOGITS, LABELS, exponent=exponent)
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_the_gradient_goes_through_the_weight_too() -> None:
    logits = LOGITS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: hard_sample_loss(x, LABELS, exponent=1.5), (logits,))


def test_an_image_that_is_sure_has_a_finite_gradient() -> None:
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    hard_sample_loss(logits, torch.tensor([0]), exponent=0.5).backward()
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())
