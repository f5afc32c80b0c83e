"""The distillation loss is the softened divergence, scaled as it says."""

import math

import pytest
import torch
from torch import Tensor

from emptyset.losses.distillation import distillation_loss


def logits(seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(3, 7, generator=generator, dtype=torch.double)


def softened(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("kd_reduction", "divisor"), [("batch_mean", 3), ("mean", 3 * 7)])
def test_it_is_the_formula_computed_with_plain_numbers(
    temperature: float, kd_reduction: str, divisor: int
) -> None:
    student, teacher = logits(0), logits(1)
    expected = 0.0
    for ours, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = softened(ours, temperature), softened(theirs, temperature)
        expected += sum(b * math.log(b / a) for a, b in zip(q, p, strict=True))
    expected *= temperature**2 / divisor
    loss = distillation_loss(student, teacher, temperature=temperature, kd_reduction=kd_reduction)
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_at_a_high_temperature_it_is_half_the_variance_of_the_difference() -> None:
    student, teacher = logits(0, 0.1), logits(1, 0.1)
    expected = 0.5 * (student - teacher).var(dim=1, correction=0).mean().item()
    loss = distillation_loss(student, teacher, temperature=20.0)
    assert loss.item() == pytest.approx(expected, rel=1e-2)


def test_equal_logits_cost_nothing_and_teach_nothing() -> None:
    student = logits(0).requires_grad_()
    loss = distillation_loss(student, student.detach() + 3.0, temperature=4.0)
    loss.backward()
    assert abs(loss.item()) < 1e-12
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-12


def test_an_unknown_reduction_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_mean, mean\. Got 'sum'"):
        distillation_loss(logits(0), logits(1), temperature=1.0, kd_reduction="sum")
