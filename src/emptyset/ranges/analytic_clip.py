"""Clip where a formula for the error says so: ACIQ.

Paper: Banner, Nahshan, Soudry 2019, "Post Training 4-bit Quantization of Convolutional Networks for
    Rapid-Deployment", arXiv:1810.05723.
Idea: for a Laplace or a normal variable the mean squared error of clipping at ``mean ± α`` and
    rounding to 2^M levels has a closed form. Its minimum is where the derivative is zero:

        Laplace(b):  e^(-a) = a / (3 · 4^M),                                α = a b
        normal(σ):   √(2/π) e^(-a²/2) - a erfc(a/√2) = a / (3 · 4^M),       α = a σ

    Both are solved here for any M, so no table is needed; ``M = log2(codes)``.
Needs: a stream of values; keeps their histogram.
Differs from source: which of the two holds is decided by the error that each of the two ranges has
    on the histogram. Values of one sign (behind a ReLU) are taken for one half of a symmetric
    variable around zero, with ``b = E[x | x > 0]`` and ``σ² = E[x² | x > 0]``, and one more bit.
    The range never exceeds the values seen.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from emptyset.ranges.estimator import finish, not_calibrated, rows
from emptyset.ranges.histogram import Histogram
from emptyset.registry import ranges

DISTRIBUTIONS = ("auto", "laplace", "normal")


@dataclass(frozen=True, kw_only=True)
class AnalyticClipConfig:
    """Settings of analytic clipping.

    Attributes:
        distribution: ``laplace``, ``normal``, or ``auto``: whichever has the smaller error.
        bins: Bins of the histogram. Ours.
    """

    distribution: str = "auto"
    bins: int = 4096

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(
                f"'distribution' must be one of {', '.join(DISTRIBUTIONS)}. Got "
                f"'{self.distribution}'."
            )
        if self.bins < 2:
            raise ValueError(f"'bins' must be at least 2. Got {self.bins}.")

    @classmethod
    def smallest(cls) -> "AnalyticClipConfig":
        """A coarse histogram."""
        return cls(bins=64)


@ranges.register(
    "analytic_clip",
    AnalyticClipConfig,
    sentence="Clips where a closed form says that the error is least (ACIQ).",
    source="Banner et al. 2019, arXiv:1810.05723",
)
@dataclass(frozen=True)
class AnalyticClip:
    """See the module docstring."""

    config: AnalyticClipConfig

    def estimator(
        self, *, axis: int | None, quant_min: int, quant_max: int, symmetric: bool
    ) -> "AnalyticClipEstimator":
        """A fresh estimator."""
        return AnalyticClipEstimator(self.config, axis, quant_min, quant_max, symmetric)


def laplace_clip(bits: float) -> float:
    """α / b that clips a Laplace variable best: the root of ``e^(-a) = a / (3 · 4^bits)``.

    Args:
        bits: M, from 1 on; not necessarily whole.
    """
    share = _share(bits)
    return _root(lambda a: math.exp(-a) - a * share)


def normal_clip(bits: float) -> float:
    """α / σ that clips a normal variable best, likewise."""
    share = _share(bits)

    def slope(a: float) -> float:
        tail = math.sqrt(2 / math.pi) * math.exp(-a * a / 2) - a * math.erfc(a / math.sqrt(2))
        return tail - a * share

    return _root(slope)


def laplace_error(alpha: Tensor, b: Tensor, bits: float) -> Tensor:
    """Mean squared error of a Laplace variable clipped at ``±alpha``: ``2b²e^(-α/b) + α²/(3·4^M)``.

    Args:
        alpha: Any shape [units of x], not negative.
        b: Scale of the variable, broadcastable, positive [units of x].
        bits: M.
    """
    return 2 * b.square() * torch.exp(-alpha / b) + alpha.square() * _share(bits)


def normal_error(alpha: Tensor, deviation: Tensor, bits: float) -> Tensor:
    """Mean squared error of a normal variable clipped at ``±alpha``.

        (α² + σ²)(1 - erf(α / √2σ)) + α² / (3·4^M) - √(2/π) α σ e^(-α² / 2σ²)

    Args:
        alpha: Any shape [units of x], not negative.
        deviation: σ, broadcastable, positive [units of x].
        bits: M.
    """
    ratio = alpha / deviation
    both: Tensor = (alpha.square() + deviation.square()) * torch.special.erfc(ratio / math.sqrt(2))
    bell = math.sqrt(2 / math.pi) * alpha * deviation * torch.exp(-ratio.square() / 2)
    return both + alpha.square() * _share(bits) - bell


def _share(bits: float) -> float:
    """``1 / (3 · 4^bits)``: rounding error of the range -1 to 1."""
    return math.exp2(-2 * bits) / 3


def _root(falling: Callable[[float], float]) -> float:
    """Where a function that falls from above to below zero between 0 and 100 is zero."""
    low, high = 0.0, 100.0
    # Until the two ends are neighbouring numbers.
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return low


class AnalyticClipEstimator:
    """Reads the moments off a histogram, per tensor or per channel."""

    def __init__(
        self,
        config: AnalyticClipConfig,
        axis: int | None,
        quant_min: int,
        quant_max: int,
        symmetric: bool,
    ) -> None:
        self._config, self._axis = config, axis
        self._codes, self._symmetric = (quant_min, quant_max), symmetric
        self._histogram = Histogram(config.bins)

    def update(self, x: Tensor) -> None:
        """Count the values of ``x``."""
        self._histogram.update(rows(x, self._axis))

    def low_high(self) -> tuple[Tensor, Tensor]:
        """Range so far."""
        if self._histogram.empty:
            raise not_calibrated()
        found = {
            kind: self._clipped(kind)
            for kind in DISTRIBUTIONS[1:]
            if self._config.distribution in (kind, "auto")
        }
        errors = torch.stack([self._error(*ends) for ends in found.values()])
        best = errors.argmin(dim=0)
        low, high = (
            torch.stack([ends[i] for ends in found.values()]).gather(0, best[None])[0]
            for i in range(2)
        )
        quant_min = self._codes[0]
        return finish(low, high, axis=self._axis, quant_min=quant_min, symmetric=self._symmetric)

    def _clipped(self, kind: str) -> tuple[Tensor, Tensor]:
        """``(C,)`` ends of the range for one distribution."""
        values, counts = self._histogram.points()
        smallest, largest = self._histogram.ends()
        bits = math.log2(self._codes[1] - self._codes[0] + 1)
        total = counts.sum(dim=1).clamp(min=1)
        one_sided = (smallest >= 0) | (largest <= 0)
        # A grid around zero has its middle there; so has one half of a symmetric variable.
        centred = one_sided | (self._symmetric and self._codes[0] < 0)
        middle = torch.where(centred, 0.0, (values * counts).sum(dim=1) / total)
        away = (values - middle[:, None]).abs()
        # Zeros behind a ReLU are what the other half became: they say nothing of the width. They
        # share a bin with the smallest values; a bin is at most twice the range over the bins.
        zeros = away < (2 * (largest - smallest) / self._config.bins)[:, None]
        counted = torch.where(one_sided[:, None] & zeros, 0.0, counts)
        total = counted.sum(dim=1).clamp(min=1)
        if kind == "laplace":
            width, clip = (away * counted).sum(dim=1) / total, laplace_clip
        else:
            width, clip = ((away.square() * counted).sum(dim=1) / total).sqrt(), normal_clip
        # A symmetric grid spends half of its codes on the side that is empty.
        half = one_sided & (not (self._symmetric and self._codes[0] < 0))
        alpha = width * torch.where(half, clip(bits + 1), clip(bits))
        return torch.maximum(middle - alpha, smallest), torch.minimum(middle + alpha, largest)

    def _error(self, low: Tensor, high: Tensor) -> Tensor:
        """``(C,)`` mean squared error on the histogram, rounding taken as evenly spread."""
        values, counts = self._histogram.points()
        ends = torch.stack([low.clamp(max=0.0), high.clamp(min=0.0)])
        if self._symmetric and self._codes[0] < 0:
            widest = ends.abs().amax(dim=0)
            ends = torch.stack([-widest, widest])
        step = (ends[1] - ends[0]) / (self._codes[1] - self._codes[0])
        over = values - torch.maximum(torch.minimum(values, ends[1][:, None]), ends[0][:, None])
        rounding = torch.where(over == 0, (step.square() / 12)[:, None], 0.0)
        total = counts.sum(dim=1).clamp(min=1)
        return ((over.square() + rounding) * counts).sum(dim=1) / total

    def state(self) -> dict[str, Tensor]:
        """The histogram."""
        return self._histogram.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from ``state``."""
        self._histogram.load_state(state)
