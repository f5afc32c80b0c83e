"""Schedules: the step size over the steps, kept on the device like everything else."""

import itertools
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
    """From the first step size down along half a cosine, once or several times.

    Source: Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5; the linear warm-up as in
    DeepInversion's released code: step k of the warm-up has the share (k + 1) / warm_up.

    Attributes:
        rate: First step size, reached at the end of the warm-up.
        final: Step size after the last step of each stretch.
        warm_up: Steps of linear growth at the begin of each stretch.
        restarts: Numbers of steps after which a new stretch begins, ascending.
    """

    rate: float
    final: float = 0.0
    warm_up: int = 0
    restarts: tuple[int, ...] = ()

    def start(self, device: torch.device) -> State:
        """Full rate, or the first of the warm-up."""
        return {"rate": torch.tensor(self.rate_of(0, math.inf), device=device)}

    def advance(self, state: State, loss: Tensor, number: int, total: int) -> None:
        """Follow the curve."""
        borders = (0, *(r for r in self.restarts if r < total), total)
        # After the last step there is no further stretch: the last one ends at its final rate.
        begin, end = next(
            (low, high)
            for low, high in itertools.pairwise(borders)
            if number < high or high == total
        )
        rate = self.rate_of(number - begin, end - begin)
        state["rate"] = torch.full_like(state["rate"], rate)

    def rate_of(self, number: int, length: float) -> float:
        """Step size after ``number`` steps of a stretch of ``length`` steps."""
        if number < self.warm_up:
            return self.rate * (number + 1) / self.warm_up
        left = max(length - self.warm_up, 1)
        share = 0.5 * (1 + math.cos(math.pi * (number - self.warm_up) / left))
        return self.final + (self.rate - self.final) * share


@dataclass(frozen=True)
class Staircase:
    """Smaller steps after every so many: ``rate · factor^⌊steps done / every⌋``.

    Attributes:
        rate: First step size.
        factor: Each reduction multiplies by this.
        every: Steps between reductions.
    """

    rate: float
    factor: float
    every: int

    def start(self, device: torch.device) -> State:
        """Full rate."""
        return {"rate": torch.tensor(self.rate, device=device)}

    def advance(self, state: State, loss: Tensor, number: int, total: int) -> None:
        """Count."""
        rate = self.rate * self.factor ** (number // self.every)
        state["rate"] = torch.full_like(state["rate"], rate)
