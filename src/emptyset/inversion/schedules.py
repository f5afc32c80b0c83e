"""Schedules: the step size over the steps, kept on the device like everything else."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from emptyset.monitor import State


class Schedule(Protocol):
    """Decides the step size."""

    def start(self, device: torch.device) -> State:
        """The state before the first step; ``rate`` is the step size, 0-dim."""

    def advance(self, state: State, loss: Tensor, number: int, total: int) -> None:
        """Set ``state["rate"]`` for the next step.

        Args:
            state: Changed in place.
            loss: Loss of the step just done, 0-dim.
            number: Steps done.
            total: Steps planned.
        """


@dataclass(frozen=True)
class Plateau:
    """Smaller steps when the loss stops falling: the rule of torch's ``ReduceLROnPlateau``.

    Attributes:
        rate: First step size.
        factor: Each reduction multiplies by this.
        patience: Steps without a new best loss before a reduction.
        minimum: Never below this step size.
        threshold: A new best loss is smaller by this share at least.
    """

    rate: float
    factor: float = 0.1
    patience: int = 100
    minimum: float = 1e-4
    threshold: float = 1e-4

    def start(self, device: torch.device) -> State:
        """Full rate, no best loss yet."""
        return {
            "rate": torch.tensor(self.rate, device=device),
            "best": torch.tensor(math.inf, device=device),
            "waited": torch.tensor(0, device=device),
        }

    def advance(self, state: State, loss: Tensor, number: int, total: int) -> None:
        """Compare with the best loss, without reading it on the host."""
        better = loss < state["best"] * (1 - self.threshold)
        state["best"] = torch.where(better, loss, state["best"])
        waited = torch.where(better, 0, state["waited"] + 1)
        reduce = waited > self.patience
        lower = (state["rate"] * self.factor).clamp(min=self.minimum)
        state["rate"] = torch.where(reduce, lower, state["rate"])
        state["waited"] = torch.where(reduce, 0, waited)


@dataclass(frozen=True)
class Cosine:
    """From the first step size down along half a cosine.

    Source: Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5, without restarts.

    Attributes:
        rate: First step size.
        final: Step size after the last step.
    """

    rate: float
    final: float = 0.0

    def start(self, device: torch.device) -> State:
        """Full rate."""
        return {"rate": torch.tensor(self.rate, device=device)}

    def advance(self, state: State, loss: Tensor, number: int, total: int) -> None:
        """Follow the curve."""
        share = 0.5 * (1 + math.cos(math.pi * number / total))
        rate = self.final + (self.rate - self.final) * share
        state["rate"] = torch.full_like(state["rate"], rate)
