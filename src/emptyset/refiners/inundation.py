"""Gradient inundation: updates of a weight tensor that are large enough to change its codes.

Small gradients, as those of the divergence from the teacher, move weights within their rounding
intervals and change nothing that is computed. So the whole update of a tensor is enlarged by one
factor a, never below 1, until a wanted share T of its codes changes:

    w ← w + a · Δ,   Δ = the optimizer's update,   a = min {a ≥ 1 : share of changed codes ≥ T}

``quantile`` keeps the grid: a weight changes its code when it passes the border of its interval,
at a factor that is known in closed form, and a is the T-quantile of these. One pass, nothing waits
for the device. ``exact`` is the paper's search, in which the grid follows the changed weights:
doubling, then at most five bisections; the device is waited for at every try.

Source: AIT, Choi et al., "It's All In the Teacher: Zero-Shot Quantization Brought Closer to the
    Teacher", CVPR 2022, arXiv:2203.17008, and its released code.
Differs from source: a factor has an upper limit, the same in all epochs (the code: 100 in the first
    epoch after the warm-up, then none, and its search never ends where a gradient is 0). ``exact``
    ends at the smallest factor tried that changed enough, or is within 1 % of it; the code at the
    last one tried, which may change too few. Codes are counted from the code of 0.0: in the
    released code, and with ``legacy``, a zero point that moves by one changes all codes of its
    channel, which is more than enough, though the values stay where they were. Works with Adam too.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emptyset.graph.originals import trainable
from emptyset.graph.student import Student
from emptyset.quantizers.affine import AffineFakeQuantizer, scale_and_zero_point
from emptyset.refiners.course import Course

INUNDATIONS = ("none", "quantile", "exact")
BISECTIONS = 5
# Of the wanted share: near enough to end a search.
TOLERANCE = 0.01
# How far a weight goes beyond the border of its interval [step], so that rounding sees it.
_BEYOND = 1e-4
# What a product of decimal fractions may miss a whole number by.
_SLACK = 1e-9


@dataclass(frozen=True)
class _Weight:
    """One quantized weight tensor.

    Attributes:
        value: It.
        quantizer: Its own.
        follows: Whether the grid spans the weight, whatever it is, or stays.
    """

    value: torch.nn.Parameter
    quantizer: AffineFakeQuantizer
    follows: bool

    def codes(self, x: Tensor, *, own_grid: bool = False, from_zero: bool = False) -> Tensor:
        """Codes of ``x``, whole numbers in floating point.

        Args:
            x: Shaped as the weight.
            own_grid: On the grid that spans ``x``, not on the present one.
            from_zero: Counted from the code of 0.0, as the values are.
        """
        quantizer = self.quantizer
        scale, zero_point = quantizer.scale, quantizer.zero_point
        if own_grid:
            ends = torch.aminmax(x.transpose(0, quantizer.axis or 0).flatten(1), dim=1)
            scale, zero_point = scale_and_zero_point(
                *ends, quantizer.quant_min, quantizer.quant_max, symmetric=quantizer.symmetric
            )
        zero = self._along(zero_point)
        codes = (x * self._along(1.0 / scale)).round() + zero
        codes = codes.clamp(quantizer.quant_min, quantizer.quant_max)
        return codes - zero if from_zero else codes

    def borders(self, x: Tensor, step: Tensor) -> Tensor:
        """Factor of ``step`` at which the code of each of ``x`` changes; infinite where never."""
        quantizer = self.quantizer
        inverse = self._along(1.0 / quantizer.scale)
        position, move = x * inverse + self._along(quantizer.zero_point), step * inverse
        code, up = self.codes(x), move > 0
        border = code + torch.where(up, 0.5 + _BEYOND, -0.5 - _BEYOND)
        inside = torch.where(up, code < quantizer.quant_max, code > quantizer.quant_min)
        return torch.where(inside & (move != 0), (border - position) / move, math.inf)

    def _along(self, values: Tensor) -> Tensor:
        """Shaped so that they broadcast along the weight's axis."""
        if self.quantizer.axis is None:
            return values
        shape = [1] * self.value.dim()
        shape[self.quantizer.axis] = -1
        return values.view(shape)


class Inundation:
    """Enlarges what an optimizer does to the quantized weights of a student.

    Args:
        student: In training, its grids published.
        optimizer: SGD with momentum, or Adam.
        course: Tells how, how much and how far at most.
    """

    def __init__(self, student: Student, optimizer: torch.optim.Optimizer, course: Course) -> None:
        parameters = trainable(student.program)
        self._optimizer, self._course = optimizer, course
        self._weights = [
            _Weight(parameters[name], quantizer, not course.learned and quantizer.axis is not None)
            for name, quantizer in student.quantizers.items()
            if name in parameters
        ]

    @contextmanager
    def around(self, share_of_rate: float) -> Iterator[None]:
        """The optimizer steps inside; afterwards its step is enlarged.

        Args:
            share_of_rate: Of the first learning rate; the wanted share falls with it.
        """
        before = [weight.value.detach().clone() for weight in self._weights]
        yield
        with torch.no_grad():
            self._enlarge(before, self._course.crossing * share_of_rate)

    def _enlarge(self, before: list[Tensor], share: float) -> None:
        steps = [
            update_of(self._optimizer, weight.value, old)
            for weight, old in zip(self._weights, before, strict=True)
        ]
        factors: Sequence[Tensor | float]
        if self._course.inundation == "exact":
            factors = self._searched(before, steps, share)
        else:
            cap = self._course.inundation_cap
            factors = [
                quantile(weight.borders(old, step), share).clamp(1.0, cap)
                for weight, old, step in zip(self._weights, before, steps, strict=True)
            ]
        for weight, old, step, factor in zip(self._weights, before, steps, factors, strict=True):
            weight.value.copy_(old + factor * step)

    def _searched(self, before: list[Tensor], steps: list[Tensor], share: float) -> list[float]:
        """The paper's search, for all tensors side by side: one wait per try, not per tensor."""
        cap, numbers = self._course.inundation_cap, range(len(before))
        from_zero = not self._course.legacy
        old = [
            weight.codes(x, from_zero=from_zero)
            for weight, x in zip(self._weights, before, strict=True)
        ]

        def enough(tried: dict[int, float]) -> dict[int, float]:
            """Share of the codes that these factors change, by tensor."""
            changed = []
            for n, factor in tried.items():
                weight = self._weights[n]
                moved = before[n] + factor * steps[n]
                new = weight.codes(moved, own_grid=weight.follows, from_zero=from_zero)
                changed.append((new != old[n]).double().mean())
            return dict(zip(tried, torch.stack(changed).tolist(), strict=True)) if tried else {}

        low, high = dict.fromkeys(numbers, 1.0), dict.fromkeys(numbers, 1.0)
        short = [n for n, found in enough(high).items() if found < share]
        bracketed: list[int] = []
        while short := [n for n in short if high[n] < cap]:
            for n in short:
                low[n], high[n] = high[n], min(2 * high[n], cap)
            found = enough({n: high[n] for n in short})
            bracketed += [n for n in short if found[n] >= share]
            short = [n for n in short if found[n] < share]
        for _ in range(BISECTIONS):
            middle = {n: (low[n] + high[n]) / 2 for n in bracketed}
            for n, found_share in enough(middle).items():
                if abs(found_share - share) < TOLERANCE * share:
                    high[n] = middle[n]
                    bracketed.remove(n)
                elif found_share < share:
                    low[n] = middle[n]
                else:
                    high[n] = middle[n]
        return [high[n] for n in numbers]


def quantile(values: Tensor, share: float) -> Tensor:
    """The smallest value that at least this share of all values does not exceed, 0-dim.

    Args:
        values: Any shape.
        share: Above 0, up to 1.
    """
    count = max(1, math.ceil(share * values.numel() - _SLACK))
    return values.flatten().kthvalue(min(count, values.numel())).values


def update_of(
    optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, before: Tensor
) -> Tensor:
    """What the last step of an optimizer added to a parameter, shaped as it.

    From the optimizer's state: the difference of the values would lose what is small beside them.

    Args:
        optimizer: SGD with momentum, or Adam.
        parameter: One of its own, the gradient still there.
        before: Its values before the step.
    """
    groups = (g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    group: dict[str, Any] = next(groups)
    state: dict[str, Tensor] = optimizer.state.get(parameter, {})
    gradient, rate = parameter.grad, float(group["lr"])
    if gradient is None or not state:
        return torch.zeros_like(parameter)
    if isinstance(optimizer, torch.optim.Adam):
        first, second = group["betas"]
        done = int(state["step"])
        root = (state["exp_avg_sq"] / (1 - second**done)).sqrt() + group["eps"]
        moved: Tensor = state["exp_avg"] / (1 - first**done) / root
        return -rate * moved
    direction = state["momentum_buffer"]
    if group["nesterov"]:
        decayed = gradient + group["weight_decay"] * before
        direction = decayed + group["momentum"] * direction
    return -rate * direction
