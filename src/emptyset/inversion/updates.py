"""Update rules: how a gradient moves what is optimised.

A rule holds settings only. Its state is a dictionary of tensors, so that an interrupted run goes
on exactly where it was. Nothing here reads a tensor's value on the host.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from emptyset.monitor import State


class Update(Protocol):
    """Moves one tensor against its gradient."""

    def start(self, variable: Tensor) -> State:
        """The state before the first step."""

    def step(
        self, variable: Tensor, gradient: Tensor, state: State, rate: Tensor, number: int
    ) -> None:
        """Move ``variable`` in place.

        Args:
            variable: What is optimised, any shape.
            gradient: Of the objective, same shape.
            state: Changed in place.
            rate: Step size, 0-dim [units of the variable per step].
            number: Steps done before this one.
        """


@dataclass(frozen=True)
class Adam:
    """Adam, Kingma & Ba 2015, arXiv:1412.6980, algorithm 1.

    Attributes:
        betas: Decay of the first and second moment.
        epsilon: Added to the root of the second moment [units of the gradient].
    """

    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8

    def start(self, variable: Tensor) -> State:
        """Both moments, zero."""
        return {"first": torch.zeros_like(variable), "second": torch.zeros_like(variable)}

    def step(
        self, variable: Tensor, gradient: Tensor, state: State, rate: Tensor, number: int
    ) -> None:
        """One step."""
        first, second = state["first"], state["second"]
        first.lerp_(gradient, 1 - self.betas[0])
        second.mul_(self.betas[1]).addcmul_(gradient, gradient, value=1 - self.betas[1])
        root = (second / (1 - self.betas[1] ** (number + 1))).sqrt_().add_(self.epsilon)
        variable.sub_((first / root).mul_(rate / (1 - self.betas[0] ** (number + 1))))
