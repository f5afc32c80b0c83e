"""Schedules as tables, against the formulas written for plain numbers."""

import math

import pytest
import torch

from emptyset.reconstruction.config import Course, ReconstructionConfig
from emptyset.reconstruction.schedules import batch_order, step_table


def course(steps: int = 50, order: str = "fresh", **settings: float) -> Course:
    config = ReconstructionConfig(steps=steps, penalty=0.3, warm_up=0.2, **settings)
    return Course(name="test", config=config, steps=steps, order=order)


def test_every_row_is_what_the_formulas_give() -> None:
    table = step_table(course(beta_start=18.0, beta_end=3.0))
    for step in range(50):
        beta, penalty, cosine, first, second = table[step].tolist()
        gone = max(0.0, (step - 10) / 40)
        assert beta == pytest.approx(3 + 15 * (1 - gone), rel=1e-6)
        assert penalty == pytest.approx(0.3 if step >= 10 else 0.0)
        assert cosine == pytest.approx(0.5 * (1 + math.cos(math.pi * step / 50)), abs=1e-6)
        assert first == pytest.approx(1 - 0.9 ** (step + 1), rel=1e-6)
        assert second == pytest.approx(1 - 0.999 ** (step + 1), rel=1e-4)


def test_an_epoch_shows_every_image_once() -> None:
    order = batch_order(course(steps=35, order="epochs"), images=14, batch=4, seed=1)
    assert order.shape == (35, 4)
    for epoch in order.flatten().split(14):
        assert sorted(epoch.tolist()) == list(range(14))


def test_a_fresh_batch_never_holds_an_image_twice() -> None:
    order = batch_order(course(steps=40), images=9, batch=6, seed=1)
    assert all(len(set(row)) == 6 for row in order.tolist())
    assert sorted(set(order.flatten().tolist())) == list(range(9))


def test_with_replacement_images_may_come_twice() -> None:
    order = batch_order(course(steps=40, order="replacement"), images=9, batch=6, seed=1)
    assert any(len(set(row)) < 6 for row in order.tolist())
    assert sorted(set(order.flatten().tolist())) == list(range(9))


@pytest.mark.parametrize("order", ["epochs", "fresh", "replacement"])
def test_the_seed_decides_the_order_and_no_steps_need_none(order: str) -> None:
    one, same, other = (
        batch_order(course(order=order), images=9, batch=5, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert batch_order(course(steps=0, order=order), images=9, batch=5, seed=1).shape == (0, 5)


@pytest.mark.parametrize(("settings", "named"), [
    ({"steps": -1}, "steps"), ({"batch_size": 0}, "batch_size"), ({"warm_up": 1.2}, "warm_up"),
    ({"rounding_learning_rate": 0.0}, "rounding_learning_rate"), ({"memory": 0.0}, "memory"),
    ({"precision": "half"}, "precision"), ({"beta_start": 1.0}, "beta_start"),
    ({"patience": -1}, "patience"),
    ({"check_every": 0}, "check_every"), ({"penalty": float("nan")}, "penalty"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused_by_name(settings: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ReconstructionConfig(**settings)
