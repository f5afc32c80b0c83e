"""Which part of a training beside a source is told to have diverged."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from emptyset.refiners.finite_losses import DivergedError, FiniteLosses


def watched(fault: str | None = None) -> tuple[FiniteLosses, dict[str, torch.Tensor]]:
    parameters = {"weight": torch.ones(3), "bias": torch.zeros(2)}
    student: Any = SimpleNamespace(device=torch.device("cpu"))
    source: Any = SimpleNamespace(fault=lambda: fault)
    return FiniteLosses(student, parameters, source), parameters


def told(losses: FiniteLosses) -> str:
    with pytest.raises(DivergedError) as error:
        losses.look(7, learnt=False, rate=0.5)
    assert not error.value.kept
    return str(error.value)


def test_weights_are_named_where_every_loss_was_finite() -> None:
    losses, parameters = watched()
    losses.add({"distillation": torch.tensor(2.0)})
    losses.look(5, learnt=False, rate=0.5)
    parameters["bias"][1] = float("nan")
    assert "'gradient of the student's weights' is NaN or infinite (seen after batch 7)" in told(
        losses
    )


def test_a_loss_goes_before_the_weights_and_is_seen_however_long_ago() -> None:
    losses, parameters = watched()
    losses.add({"cross_entropy": torch.tensor(1.0), "distillation": torch.tensor(float("inf"))})
    losses.add({"cross_entropy": torch.tensor(1.0), "distillation": torch.tensor(1.0)})
    parameters["weight"][0] = float("inf")
    assert "the loss term 'distillation'" in told(losses)


def test_the_sources_own_fault_goes_before_all() -> None:
    losses, _ = watched("gdfq: cross entropy")
    losses.add({"distillation": torch.tensor(float("nan"))})
    assert "the loss term 'gdfq: cross entropy'" in told(losses)
