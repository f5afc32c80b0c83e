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


@dataclass(frozen=True)
class MomentumSign:
    """MI-FGSM: momentum of gradients of equal weight, a step of equal size for every pixel.

        g ← momentum · g + gradient / ‖gradient‖₁,   x ← x − rate · sign(g)

    The norm is that of each image, so that one hard image does not outweigh the others, and no
    factor of the whole loss matters, only the ratio of its terms.

    Source: Dong et al. 2018, arXiv:1710.06081, algorithm 1, turned round (the loss is to fall);
        DFFG, Leng et al., BMVC 2023. DFFG's poster prints the loss J in the numerator where the
        source has its gradient: a slip, corrected here.

    Attributes:
        momentum: Weight of the earlier gradients.
        epsilon: Added to the norm [units of the gradient]. Ours.
    """

    momentum: float = 1.0
    epsilon: float = 1e-12

    def start(self, variable: Tensor) -> State:
        """No momentum."""
        return {"momentum": torch.zeros_like(variable)}

    def step(
        self, variable: Tensor, gradient: Tensor, state: State, rate: Tensor, number: int
    ) -> None:
        """One step."""
        axes = tuple(range(1, gradient.dim()))
        norm = gradient.abs().sum(dim=axes, keepdim=True) if axes else gradient.abs()
        state["momentum"].mul_(self.momentum).add_(gradient / (norm + self.epsilon))
        variable.sub_(state["momentum"].sign() * rate)


@dataclass(frozen=True)
class Restarted:
    """Another rule that forgets its state at given steps.

    Attributes:
        rule: The rule.
        at: Numbers of steps done at which it starts anew, ascending.
    """

    rule: Update
    at: tuple[int, ...]

    def start(self, variable: Tensor) -> State:
        """The rule's own."""
        return self.rule.start(variable)

    def step(
        self, variable: Tensor, gradient: Tensor, state: State, rate: Tensor, number: int
    ) -> None:
        """One step of the rule, counted from the last new start."""
        if number in self.at:
            state.update(self.rule.start(variable))
        begin = max((step for step in self.at if step <= number), default=0)
        self.rule.step(variable, gradient, state, rate, number - begin)


@dataclass(frozen=True)
class Clipped:
    """Another rule, whose steps end at the border of a range per channel.

    Attributes:
        rule: The rule.
        low: Lowest value per channel [units of the variable].
        high: Highest value per channel.
    """

    rule: Update
    low: tuple[float, ...]
    high: tuple[float, ...]

    def start(self, variable: Tensor) -> State:
        """The rule's own."""
        return self.rule.start(variable)

    def step(
        self, variable: Tensor, gradient: Tensor, state: State, rate: Tensor, number: int
    ) -> None:
        """One step of the rule, then back into the range; ``variable`` is ``(N, C, H, W)``."""
        self.rule.step(variable, gradient, state, rate, number)
        for channel, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            variable[:, channel].clamp_(low, high)


def unclipped(rule: Update) -> Update:
    """The rule without a range, whatever it is wrapped in."""
    if isinstance(rule, Clipped):
        return unclipped(rule.rule)
    if isinstance(rule, Restarted):
        return Restarted(unclipped(rule.rule), rule.at)
    return rule
