"""What becomes of ReLU6 and its like when the channels before it are rescaled.

A channel that is divided by s must be clipped at 6 / s. Float mode does exactly that. Kernels know
one bound for all channels, so the quantized network clips at 6 / s of the channels that reach
their bound, which therefore all have the same s; the others stay below it and need no clip.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from emptyset.graph.channel_labels import channel_axis, shape_of
from emptyset.graph.edits import (
    CLIP_HIGH,
    CLIP_LOW,
    channel_clip_bounds,
    clip_per_channel,
)
from emptyset.graph.operators import attribute, clip_bounds
from emptyset.graph.student import Student
from emptyset.ranges.clipped_normal import ClippedNormal


@dataclass(frozen=True)
class RescaledClip:
    """One clip behind a layer whose channels are being divided by factors.

    Attributes:
        student: Whose clip it is.
        node: The clip.
        low: ``(C,)`` exact lower bounds before rescaling [units of x].
        high: ``(C,)`` exact upper bounds before rescaling [units of x].
        lowest: ``(C,)`` where the channels' values reach to before clipping [units of x].
        highest: ``(C,)`` likewise.
    """

    student: Student
    node: fx.Node
    low: Tensor
    high: Tensor
    lowest: Tensor
    highest: Tensor

    @staticmethod
    def of(
        student: Student, node: fx.Node, told: ClippedNormal | None, deviations: float
    ) -> "RescaledClip":
        """The clip as it is now.

        Args:
            student: Whose clip it is.
            node: The clip.
            told: What is known of its input; None: every channel may reach its bound.
            deviations: Within so many standard deviations a channel lies.
        """
        count = shape_of(node)[channel_axis(node)]
        bounds = channel_clip_bounds(student.program, node)
        if bounds is None:
            ends = clip_bounds(node)
            assert ends is not None
            low, high = (torch.full((count,), end, dtype=torch.double) for end in ends)
        else:
            # Those of float mode: the program has one bound for all.
            paths = [str(a.target) for a in node.args[1:3] if isinstance(a, fx.Node)]
            exact = [student.originals.get(p, attribute(student.program, p)) for p in paths]
            low, high = (end.detach().cpu().double().flatten() for end in exact)
        if told is None:
            everywhere = torch.full((count,), math.inf, dtype=torch.double)
            return RescaledClip(student, node, low, high, -everywhere, everywhere)
        return RescaledClip(student, node, low, high, *told.reach(deviations))

    @property
    def reached(self) -> Tensor:
        """``(C,)`` bool: channels whose values reach a bound other than zero."""
        below = (self.low != 0) & (self.lowest < self.low)
        return below | ((self.high != 0) & (self.highest > self.high))

    def permitted(self, factors: Tensor, so_far: Tensor) -> Tensor:
        """The factors nearest to these for which one bound serves all channels.

        Args:
            factors: ``(C,)`` by which the channels are to be divided now.
            so_far: ``(C,)`` by which they were divided before.
        """
        reached = self.reached
        if not bool(reached.any()):
            return factors
        alike = factors[reached].log().mean().exp()
        factors = torch.where(reached, alike, factors)
        # The others must stay inside the common bound.
        common = so_far[reached][0] * alike
        least = torch.zeros_like(factors)
        for bound, end in (
            (self.low[reached][0], self.lowest),
            (self.high[reached][0], self.highest),
        ):
            if bound != 0 and math.isfinite(bound):
                least = torch.maximum(least, common * end / bound / so_far)
        return torch.where(reached, alike, torch.maximum(factors, least))

    def write(self, divisor: Tensor) -> None:
        """Give program and float mode their bounds.

        Args:
            divisor: ``(C,)`` by which the channels were divided in all.
        """
        if bool((divisor == 1).all()):
            return
        exact, reached, program = (
            (self.low / divisor, self.high / divisor),
            self.reached,
            self.student.program,
        )
        uniform = []
        for end, without in zip(exact, (-math.inf, math.inf), strict=True):
            bound = end[reached][0] if bool(reached.any()) else torch.tensor(without)
            # A bound of zero (ReLU's) serves every channel whatever its factor.
            bound = torch.tensor(0.0) if bool((end == 0).all()) else bound
            uniform.append(bound.expand(len(end)))
        if channel_clip_bounds(program, self.node) is None:
            owner = clip_per_channel(program, self.node, *uniform)
            paths = [f"{owner}.{name}" for name in (CLIP_LOW, CLIP_HIGH)]
        else:
            paths = [str(a.target) for a in self.node.args[1:3] if isinstance(a, fx.Node)]
        for path, here, there in zip(paths, uniform, exact, strict=True):
            bounds: Tensor = attribute(program, path)
            with torch.no_grad():
                bounds.copy_(here.view_as(bounds))
            self.student.originals[path] = there.to(bounds).view_as(bounds)
