"""Channels of a tensor as normal variables that are clipped: what BatchNorm tells without data.

Behind a BatchNorm with shift β and scale γ a channel has mean β and deviation |γ|; behind a ReLU it
is the same variable clipped to ``[0, ∞)``. Moments are closed forms, quantiles are exact.

Source: Nagel et al. 2019, "Data-Free Quantization through Weight Equalization and Bias Correction",
    arXiv:1906.04721, section 4.2 and appendix (expectation of a clipped normal). Sums, products and
    functions of such variables: ours.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

# Tails of what is no normal variable are read off where a normal one has this many deviations.
TAIL_AT = 6.0
_POINTS, _WIDEST = 1024, 12.0


@dataclass(frozen=True)
class ClippedNormal:
    """One variable per channel: ``x = clip(normal(mean, deviation²), low, high)``; all ``(C,)``.

    Attributes:
        mean: Of the normal before clipping [units of x].
        deviation: Not negative; 0 where the channel is constant [units of x].
        tail_low: How far x reaches below the mean, per deviation that is counted [units of x]:
            the deviation itself unless x is a sum or a function of others.
        tail_high: The same above the mean.
        low: -inf where nothing is clipped below [units of x].
        high: inf where nothing is clipped above [units of x].
        matched: Mean and deviation are those of x itself (of a sum, say), and the bounds only tell
            how far it can reach.
    """

    mean: Tensor
    deviation: Tensor
    tail_low: Tensor
    tail_high: Tensor
    low: Tensor
    high: Tensor
    matched: Tensor

    @staticmethod
    def of(mean: Tensor, deviation: Tensor) -> "ClippedNormal":
        """Not clipped; both ``(C,)``."""
        mean, deviation = mean.double(), deviation.double()
        infinity = torch.full_like(mean, math.inf)
        no = torch.zeros_like(mean, dtype=torch.bool)
        return ClippedNormal(mean, deviation, deviation, deviation, -infinity, infinity, no)

    def __len__(self) -> int:
        return len(self.mean)

    def clipped(self, low: float | Tensor, high: float | Tensor) -> "ClippedNormal":
        """Clipped once more, to bounds ``()`` or ``(C,)``."""
        low, high = (
            torch.as_tensor(end, dtype=torch.double, device=self.mean.device) for end in (low, high)
        )
        touched = (low > self.low) | (high < self.high)
        lowest = torch.maximum(torch.minimum(self.low, high), low)
        highest = torch.maximum(torch.minimum(self.high, high), low)
        matched = self.matched & ~touched
        return ClippedNormal(
            self.mean, self.deviation, self.tail_low, self.tail_high, lowest, highest, matched
        )

    def scaled(self, factor: float | Tensor, offset: float | Tensor = 0.0) -> "ClippedNormal":
        """``factor * x + offset``, both ``()`` or ``(C,)``."""
        device = self.mean.device
        factor = torch.as_tensor(factor, dtype=torch.double, device=device).expand_as(self.mean)
        # Times zero everything is zero, infinity too.
        ends = [_times(end, factor) + offset for end in (self.low, self.high)]
        tails = [tail * factor.abs() for tail in (self.tail_low, self.tail_high)]
        turned = factor < 0
        return ClippedNormal(
            self.mean * factor + offset,
            self.deviation * factor.abs(),
            torch.where(turned, tails[1], tails[0]),
            torch.where(turned, tails[0], tails[1]),
            torch.minimum(ends[0], ends[1]),
            torch.maximum(ends[0], ends[1]),
            self.matched,
        )

    def taken(self, channels: Tensor, shares: Tensor | None = None) -> "ClippedNormal":
        """Channels in another order.

        Args:
            channels: ``(C',)`` index of each; -1 stands for a channel of zeros.
            shares: ``(C',)`` share of the values that come from the channel; the others are zeros
                (of a padded border). None: all of them.
        """
        index, there = channels.clamp(min=0), channels >= 0
        mean, variance = (values[index] for values in self.moments())
        shares = torch.ones_like(mean) if shares is None else shares.to(mean)
        part = there & (shares < 1)
        chosen = [part[index] for part in _parts(self)]
        taken = ClippedNormal(*(torch.where(there, p, torch.zeros_like(p)) for p in chosen))
        if not bool(part.any()):
            return taken
        low, high = taken.reach(TAIL_AT)
        mixed = _matched(
            mean * shares,
            variance * shares + mean.square() * shares * (1 - shares),
            (low.clamp(max=0.0), high.clamp(min=0.0)),
            (taken.low.clamp(max=0.0), taken.high.clamp(min=0.0)),
        )
        pairs = zip(_parts(mixed), _parts(taken), strict=True)
        return ClippedNormal(*(torch.where(part, one, other) for one, other in pairs))

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean [units of x] and variance [squared] after clipping, ``(C,)`` each.

            E[x] = σ(φ(A) - φ(B)) + μ(Φ(B) - Φ(A)) + aΦ(A) + c(1 - Φ(B))
            A = (a - μ) / σ,  B = (c - μ) / σ

        Source:
            Nagel et al. 2019, arXiv:1906.04721, appendix. The second moment likewise.
        """
        mean, deviation = self.mean, self.deviation.clamp(min=1e-300)
        below, above = (self.low - mean) / deviation, (self.high - mean) / deviation
        under, over = torch.special.ndtr(below), torch.special.ndtr(-above)
        inside = (1 - under - over).clamp(min=0.0)
        density_low, density_high = _density(below), _density(above)
        low, high = (torch.where(end.isinf(), 0.0, end) for end in (self.low, self.high))
        spread = deviation * (density_low - density_high)
        first = spread + mean * inside + low * under + high * over
        # Around the mean of the normal: no difference of two large numbers.
        bend = _times(below, density_low) - _times(above, density_high)
        second = deviation.square() * (inside + bend)
        second = second + (low - mean).square() * under + (high - mean).square() * over
        variance = (second - (first - mean).square()).clamp(min=0.0)
        constant = self.deviation == 0
        fixed = torch.maximum(torch.minimum(mean, self.high), self.low)
        first = torch.where(self.matched, mean, torch.where(constant, fixed, first))
        variance = torch.where(constant, 0.0, variance)
        return first, torch.where(self.matched, self.deviation.square(), variance)

    def reach(self, deviations: float) -> tuple[Tensor, Tensor]:
        """``mean ∓ deviations · tail``, clipped; ``(C,)`` each [units of x]."""
        ends = (self.mean - deviations * self.tail_low, self.mean + deviations * self.tail_high)
        low, high = (torch.maximum(torch.minimum(end, self.high), self.low) for end in ends)
        return low, high

    def points(self, count: int) -> Tensor:
        """``(C, count)`` values, one in the middle of each of ``count`` equally likely parts."""
        shares = (torch.arange(count, dtype=torch.double, device=self.mean.device) + 0.5) / count
        return self._at(torch.special.ndtri(shares))

    def largest_of(self, count: float) -> "ClippedNormal":
        """The largest of ``count`` independent ones (a whole number or not)."""
        shares = torch.arange(_POINTS, dtype=torch.double, device=self.mean.device) + 0.5
        values = self._at(torch.special.ndtri((shares / _POINTS) ** (1 / count)))
        mean, variance = values.mean(dim=1), values.var(dim=1, correction=0)
        return _matched(mean, variance, self.reach(TAIL_AT), (self.low, self.high))

    def averaged(self) -> "ClippedNormal":
        """The mean over positions that all say the same: the variance of one of them, no tails."""
        mean, variance = self.moments()
        width = TAIL_AT * variance.sqrt()
        return _matched(mean, variance, (mean - width, mean + width), (self.low, self.high))

    def through(self, function: Callable[[Tensor], Tensor]) -> "ClippedNormal":
        """A function of the variable; mean and variance by quadrature.

        Args:
            function: ``(points, C)`` to ``(points, C)``, each value by itself.
        """
        values = function(self.points(_POINTS).T)
        reached = []
        for deviations in (TAIL_AT, _WIDEST):
            low, high = self.reach(deviations)
            steps = torch.linspace(0, 1, _POINTS + 1, dtype=torch.double, device=low.device)
            ends = function(low + (high - low) * steps[:, None])
            reached.append((ends.amin(dim=0), ends.amax(dim=0)))
        return _matched(values.mean(dim=0), values.var(dim=0, correction=0), *reached)

    def plus(self, other: "ClippedNormal") -> "ClippedNormal":
        """The sum with an independent variable."""
        (mean, variance), (mean_2, variance_2) = self.moments(), other.moments()
        total, tails = mean + mean_2, []
        for one, two in zip(self.reach(TAIL_AT), other.reach(TAIL_AT), strict=True):
            tails.append(torch.hypot(one - mean, two - mean_2))
        bounds = (self.low + other.low, self.high + other.high)
        return _matched(total, variance + variance_2, (total - tails[0], total + tails[1]), bounds)

    def times(self, other: "ClippedNormal") -> "ClippedNormal":
        """The product with an independent variable."""
        (mean, variance), (mean_2, variance_2) = self.moments(), other.moments()
        both = variance * variance_2
        spread = both + variance * mean_2.square() + variance_2 * mean.square()
        reached = _corners(self.reach(TAIL_AT), other.reach(TAIL_AT))
        bounds = _corners((self.low, self.high), (other.low, other.high))
        return _matched(mean * mean_2, spread, reached, bounds)

    def _at(self, standard: Tensor) -> Tensor:
        """``(C, n)`` values at ``(n,)`` standard normal ones."""
        values = self.mean[:, None] + self.deviation[:, None] * standard
        return torch.maximum(torch.minimum(values, self.high[:, None]), self.low[:, None])


def joined(variables: list[ClippedNormal]) -> ClippedNormal:
    """The channels of several, one after the other."""
    return ClippedNormal(*(torch.cat(p) for p in zip(*map(_parts, variables), strict=True)))


def _parts(variable: ClippedNormal) -> list[Tensor]:
    return [getattr(variable, field.name) for field in fields(variable)]


def _matched(
    mean: Tensor,
    variance: Tensor,
    reached: tuple[Tensor, Tensor],
    bounds: tuple[Tensor, Tensor],
) -> ClippedNormal:
    """A variable of which mean and variance are known, and how far it reaches.

    Args:
        mean: ``(C,)``.
        variance: ``(C,)``.
        reached: Its ends where a normal variable has 6 deviations.
        bounds: Beyond these it never is.
    """
    tails = ((mean - reached[0]) / TAIL_AT, (reached[1] - mean) / TAIL_AT)
    return ClippedNormal(
        mean,
        variance.clamp(min=0.0).sqrt(),
        tails[0].clamp(min=0.0),
        tails[1].clamp(min=0.0),
        *bounds,
        matched=torch.ones_like(mean, dtype=torch.bool),
    )


def _corners(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    products = torch.stack([_times(a, b) for a in one for b in other])
    return products.amin(dim=0), products.amax(dim=0)


def _density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)


def _times(x: Tensor, factor: Tensor) -> Tensor:
    """Product in which 0 wins over infinity."""
    return torch.where((x == 0) | (factor == 0), 0.0, x * factor)
