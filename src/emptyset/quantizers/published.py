"""The seed papers' quantizer formulas: as printed, and corrected.

Each printed formula is kept so that a reader can check what it computes; each corrected one gives
the same values as the canonical affine quantizer of ``affine.py`` (away from rounding ties).

| paper | printed | what is wrong |
|---|---|---|
| GenQ, Eq. 1-2 | largest code ``2^(b-1)`` | must be ``2^b - 1`` (lost in typesetting) |
| Enhancing Diversity, Eq. 14 | ``z = l / s + 2^(k-1)``, not rounded | 0 has no exact code |
| DFFG | ``Z = S l + 2^(n-1)``, not rounded, no clamp | 0 has no exact code; codes leave n bits |
| Qimera, Eq. 10 | ``interval = (max - min) / 2^(n-1)``, floor | half of the codes are never used |
"""

from collections.abc import Callable

import torch
from torch import Tensor


def _steps(bits: int) -> int:
    return int(2**bits) - 1


def _half(bits: int) -> int:
    return int(2 ** (bits - 1))


def canonical(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """``x_hat`` by ``s = (h - l) / (2^b - 1)``, ``z = -round(l / s)``, codes ``0 .. 2^b - 1``.

    Args:
        x: Any shape [units of x].
        low: Smallest value of the range, broadcastable, at most 0.
        high: Largest value of the range, broadcastable, at least 0.
        bits: Word length.

    Returns:
        Dequantized values, shaped as ``x``.
    """
    scale = (high - low) / _steps(bits)
    zero_point = -(low / scale).round()
    codes = ((x / scale).round() + zero_point).clamp(0, _steps(bits))
    return (codes - zero_point) * scale


def genq(x: Tensor, low: Tensor, high: Tensor, bits: int, *, printed: bool = False) -> Tensor:
    """GenQ Eq. 1-2. Printed: the largest code is ``2^(b-1)``, so half of the range is clipped."""
    scale = (high - low) / _steps(bits)
    zero_point = -(low / scale).round()
    largest = _half(bits) if printed else _steps(bits)
    codes = ((x / scale).round() + zero_point).clamp(0, largest)
    return (codes - zero_point) * scale


def enhancing_diversity(
    x: Tensor, low: Tensor, high: Tensor, bits: int, *, printed: bool = False
) -> Tensor:
    """Enhancing Diversity Eq. 14: signed codes ``round(x / s - z)``, dequantized ``s (q + z)``.

    Printed: z is a real number, so 0 is not representable. (The dequantization is not printed.)
    """
    scale = (high - low) / _steps(bits)
    offset = low / scale + _half(bits)
    offset = offset if printed else offset.round()
    codes = (x / scale - offset).round().clamp(-_half(bits), _half(bits) - 1)
    return scale * (codes + offset)


def dffg(x: Tensor, low: Tensor, high: Tensor, bits: int, *, printed: bool = False) -> Tensor:
    """DFFG poster: ``S = (2^n - 1) / (u - l)``, ``q = round(S x - Z)``, ``x_hat = (q + Z) / S``.

    Printed: Z is a real number and codes are not clamped.
    """
    steps_per_unit = _steps(bits) / (high - low)
    offset = steps_per_unit * low + _half(bits)
    if printed:
        return ((steps_per_unit * x - offset).round() + offset) / steps_per_unit
    offset = offset.round()
    codes = (steps_per_unit * x - offset).round().clamp(-_half(bits), _half(bits) - 1)
    return (codes + offset) / steps_per_unit


def qimera(x: Tensor, low: Tensor, high: Tensor, bits: int, *, printed: bool = False) -> Tensor:
    """Qimera Eq. 10: ``code = (x - min) / interval - 2^(n-1)``.

    Printed: ``interval = (max - min) / 2^(n-1)`` and floor, which gives only codes
    ``-2^(n-1) .. 0``. Corrected: ``(max - min) / (2^n - 1)``, rounded, with a whole zero point.
    """
    half = _half(bits)
    if printed:
        interval = (high - low) / half
        codes = ((x - low) / interval - half).floor()
        return (codes + half) * interval + low
    interval = (high - low) / _steps(bits)
    zero = (low / interval).round()
    codes = ((x / interval).round() - zero - half).clamp(-half, half - 1)
    return (codes + half + zero) * interval


def zeroq_family(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """What the released code of GDFQ, Qimera, AIT, AdaDFQ, IntraQ and SynQ runs."""
    steps_per_unit = _steps(bits) / torch.clamp(high - low, min=1e-8)
    zero_point = (steps_per_unit * low).round() + _half(bits)
    codes = (steps_per_unit * x - zero_point).round()
    codes = codes.clamp(-_half(bits), _half(bits) - 1)
    return (codes + zero_point) / steps_per_unit


CORRECTED: dict[str, Callable[[Tensor, Tensor, Tensor, int], Tensor]] = {
    "genq": genq,
    "enhancing_diversity": enhancing_diversity,
    "dffg": dffg,
    "qimera": qimera,
    "zeroq_family": zeroq_family,
}
