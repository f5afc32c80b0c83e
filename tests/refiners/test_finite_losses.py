"""Which part of a training beside a source is told to have diverged."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from emptyset.images.image_source import Fault
from emptyset.refiners.finite_losses import DivergedError, FiniteLosses

NAN, INF = float("nan"), float("inf")


def watched(fault: Fault | None = None) -> tuple[FiniteLosses, dict[str, torch.Tensor]]:
    parameters = {"weight": torch.ones(3), "bias": torch.zeros(2)}
    student: Any = SimpleNamespace(device=torch.device("cpu"))
    source: Any = SimpleNamespace(fault=lambda: fault)
    return FiniteLosses(student, parameters, source), parameters


def told(losses: FiniteLosses) -> str:
    with pytest.raises(DivergedError) as error:
        losses.look(7, learnt=False, rate=0.5)
    assert not error.value.kept
    return str(error.value)


def add(losses: FiniteLosses, batch: int, **values: float) -> None:
    losses.add({name: torch.tensor(value) for name, value in values.items()}, batch)


def test_weights_are_named_where_every_loss_was_finite() -> None:
    losses, parameters = watched()
    add(losses, 0, distillation=2.0)
    losses.look(5, learnt=False, rate=0.5)
    parameters["bias"][1] = NAN
    assert "'gradient of the student's weights' is NaN or infinite (seen after batch 7)" in told(
        losses
    )


def test_a_loss_goes_before_the_weights_and_is_seen_however_long_ago() -> None:
    losses, parameters = watched()
    add(losses, 0, cross_entropy=1.0, distillation=INF)
    add(losses, 1, cross_entropy=1.0, distillation=1.0)
    parameters["weight"][0] = INF
    assert "the loss term 'distillation'" in told(losses)


def test_of_two_losses_that_of_the_earlier_batch_is_named() -> None:
    losses, _ = watched()
    add(losses, 2, cross_entropy=1.0, distillation=INF)
    add(losses, 3, cross_entropy=NAN, distillation=NAN)
    assert "the loss term 'distillation'" in told(losses)


# The look is after seven batches, 0 to 6: four lessons ago is batch 3.
@pytest.mark.parametrize(
    ("ago", "named"), [(5, "zaq: pixels"), (4, "zaq: pixels"), (3, "distillation")]
)
def test_source_and_student_are_told_apart_by_who_was_first(ago: int, named: str) -> None:
    losses, _ = watched(Fault("zaq: pixels", ago))
    add(losses, 3, distillation=NAN)
    assert f"the loss term '{named}'" in told(losses)


@pytest.mark.parametrize(
    ("pixel", "logit", "named"),
    [
        (0.5, NAN, "logits of the student"),
        (0.5, -1e8, "logits of the student"),
        (NAN, NAN, "zaq: pixels"),
        (0.5, -1e4, "zaq: pixels"),
    ],
)
def test_a_term_of_the_source_that_follows_from_the_student_is_not_to_blame(
    pixel: float, logit: float, named: str
) -> None:
    losses, _ = watched(Fault("zaq: pixels", 4))
    images, logits = torch.full((2, 3, 4, 4), pixel), torch.full((2, 5), logit)
    losses.add_output(images, logits, torch.ones(2, 5), 3)
    assert f"the loss term '{named}'" in told(losses)


def test_absurd_logits_alone_are_no_reason_to_stop() -> None:
    losses, _ = watched()
    losses.add_output(torch.zeros(2, 3, 4, 4), torch.full((2, 5), 1e9), torch.zeros(2, 5), 0)
    add(losses, 0, distillation=1e3)
    losses.look(1, learnt=False, rate=0.5)


def test_what_a_killed_run_had_seen_is_known_to_the_next() -> None:
    before, _ = watched()
    add(before, 1, cross_entropy=1.0, distillation=INF)
    state = {name: value.clone() for name, value in before.state().items()}
    after, _ = watched(Fault("gdfq: cross entropy", 5))  # batch 2
    after.load_state(state)
    add(after, 4, cross_entropy=NAN, distillation=1.0)
    assert "the loss term 'distillation'" in told(after)
