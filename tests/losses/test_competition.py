"""The competition between teacher and student against plain numbers."""

import math

import pytest
import torch

from emptyset.losses.competition import competition_loss
from emptyset.losses.pixel_norm import pixel_norm_per_image


def test_it_is_one_less_the_jensen_shannon_divergence() -> None:
    teacher = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]], dtype=torch.double)
    student = torch.tensor([[-1.0, 2.0, 0.5], [1.0, 0.0, -2.0]], dtype=torch.double)
    expected = 0.0
    for left, right in zip(teacher.tolist(), student.tolist(), strict=True):
        ps, qs = ([math.exp(v / 3) for v in values] for values in (left, right))
        ps, qs = ([v / sum(values) for v in values] for values in (ps, qs))
        for p, q in zip(ps, qs, strict=True):
            m = (p + q) / 2
            expected += (p * math.log(p / m) + q * math.log(q / m)) / 2 / 2
    assert competition_loss(teacher, student).item() == pytest.approx(1 - expected, rel=1e-9)
    assert competition_loss(teacher, teacher).item() == pytest.approx(1.0)


def test_sure_and_opposite_networks_stay_finite() -> None:
    far = 1000 * torch.eye(2)
    logits = far.clone().requires_grad_()
    loss = competition_loss(logits, far.flip(0))
    loss.backward()
    assert 0 <= loss.item() < 0.5
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())


def test_the_pixel_norm_is_that_of_each_image() -> None:
    images = torch.zeros(2, 1, 2, 2)
    images[1, 0] = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert pixel_norm_per_image(images).tolist() == [0.0, 5.0]
