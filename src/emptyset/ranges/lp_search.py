"""Search for the range that makes the quantization error smallest in the Lp norm.

    error(low, high) = mean |x − fake_quantize(x; low, high)|^p

The rounding is that of ``torch.fake_quantize_per_tensor_affine`` and ``per_channel_affine``:

    scale = (high − low) / (quant_max − quant_min)
    zero_point = quant_min − round(low / scale)          0 or quant_min where symmetric
    code = clamp(round(x · (1 / scale)) + zero_point, quant_min, quant_max)
    fake_quantize(x) = (code − zero_point) · scale

Sources: BRECQ, Li et al. 2021, arXiv:2102.05426 (80 joint shrink factors, p = 2.4); Genie, Jeon et
    al. 2023, arXiv:2212.04780 (100 factors from 1.00 to 0.01); QDrop, Wei et al. 2022,
    arXiv:2203.05740 (both ends on their own).
"""

import torch
from torch import Tensor

from emptyset.ranges.estimator import finish, rows

# Elements worked on at once: the few buffers of this size stay in the second-level cache.
_ELEMENTS = 1 << 17
_COARSE = 24


def lp_search(
    x: Tensor,
    *,
    axis: int | None,
    quant_min: int,
    quant_max: int,
    symmetric: bool,
    exponent: float = 2.4,
    candidates: int = 100,
) -> tuple[Tensor, Tensor]:
    """Shrink minimum and maximum jointly, by ``1, (n−1)/n … 1/n``; keep the best, per channel.

    Args:
        x: Any shape [units of x], finite.
        axis: Channel axis; None: one range for the whole tensor.
        quant_min: Lowest code.
        quant_max: Highest code.
        symmetric: The zero point is 0 (signed grid) or ``quant_min`` (unsigned grid).
        exponent: p.
        candidates: n. Where several are equally good, the widest wins.

    Returns:
        ``low <= 0 <= high`` [units of x], 0-dim or ``(C,)``. Both are 0 exactly where a channel
        holds nothing but zeros.

    Raises:
        NotCalibratedError: If ``x`` is empty or holds NaN or infinity.
    """
    values_Cn = rows(x, axis)
    low, high = finish(
        *torch.aminmax(values_Cn, dim=1), axis=0, quant_min=quant_min, symmetric=symmetric
    )
    steps = torch.arange(candidates, 0, -1, device=low.device, dtype=low.dtype)
    factors_K = steps / candidates
    lows_CK, highs_CK = low[:, None] * factors_K, high[:, None] * factors_K
    grid = (quant_min, quant_max, symmetric)
    errors_CK = _errors(values_Cn, None, lows_CK, highs_CK, grid, exponent)
    best_C1 = _first_smallest(errors_CK)
    low, high = (v.gather(1, best_C1)[:, 0] for v in (lows_CK, highs_CK))
    return (low[0], high[0]) if axis is None else (low, high)


def lp_search_points(
    values_Cn: Tensor,
    counts_Cn: Tensor,
    *,
    quant_min: int,
    quant_max: int,
    symmetric: bool,
    exponent: float,
    candidates: int,
    independent_ends: bool,
) -> tuple[Tensor, Tensor]:
    """As ``lp_search``, for values that carry a weight (a histogram's bins).

    Where a row has both signs and the grid is not symmetric, ``independent_ends`` also tries
    every pair of a low and a high end from a coarse lattice, then refines around the best pair.

    Args:
        values_Cn: ``(C, n)`` [units of x].
        counts_Cn: ``(C, n)``, how often each value stands, not negative.
        quant_min: Lowest code.
        quant_max: Highest code.
        symmetric: As in ``lp_search``.
        exponent: p.
        candidates: Number of joint shrink factors.
        independent_ends: Search both ends on their own, too.

    Returns:
        ``low <= 0 <= high``, ``(C,)`` each [units of x].
    """
    seen = counts_Cn > 0
    smallest = values_Cn.where(seen, torch.inf).amin(dim=1)
    largest = values_Cn.where(seen, -torch.inf).amax(dim=1)
    low, high = finish(smallest, largest, axis=0, quant_min=quant_min, symmetric=symmetric)
    low, high = low.double(), high.double()
    grid = (quant_min, quant_max, symmetric)

    def best_of(lows_CK: Tensor, highs_CK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        errors_CK = _errors(values_Cn, counts_Cn, lows_CK, highs_CK, grid, exponent)
        index = _first_smallest(errors_CK)
        chosen = (v.gather(1, index)[:, 0] for v in (errors_CK, lows_CK, highs_CK))
        error, low, high = chosen
        return error, low, high

    steps = torch.arange(candidates, 0, -1, device=low.device, dtype=low.dtype)
    factors_K = steps / candidates
    error, best_low, best_high = best_of(low[:, None] * factors_K, high[:, None] * factors_K)
    if symmetric or not independent_ends or not bool(((low < 0) & (high > 0)).any()):
        return best_low.float(), best_high.float()
    coarse = torch.arange(_COARSE, 0, -1, device=low.device, dtype=low.dtype) / _COARSE
    pairs = torch.cartesian_prod(coarse, coarse)
    span = 1.0 / _COARSE
    lows, highs = low[:, None] * pairs[:, 0], high[:, None] * pairs[:, 1]
    for _ in range(3):
        tried, new_low, new_high = best_of(lows, highs)
        better = tried < error
        error = torch.where(better, tried, error)
        best_low = torch.where(better, new_low, best_low)
        best_high = torch.where(better, new_high, best_high)
        # Once more on a lattice four times as fine, around the best pair so far.
        span /= 4
        near = torch.arange(-4, 5, device=low.device, dtype=low.dtype) * span
        moves = torch.cartesian_prod(near, near)
        lows = (best_low[:, None] + low[:, None] * moves[:, 0]).clamp(max=0.0)
        highs = (best_high[:, None] + high[:, None] * moves[:, 1]).clamp(min=0.0)
        lows, highs = torch.maximum(lows, low[:, None]), torch.minimum(highs, high[:, None])
    return best_low.float(), best_high.float()


def _first_smallest(errors_CK: Tensor) -> Tensor:
    """Index of the first smallest error of each row, ``(C, 1)``; argmin leaves ties open."""
    count = errors_CK.shape[1]
    order = torch.arange(count, device=errors_CK.device).expand_as(errors_CK)
    smallest = errors_CK == errors_CK.amin(dim=1, keepdim=True)
    return order.where(smallest, count).amin(dim=1, keepdim=True)


def _errors(
    values_Cn: Tensor,
    counts_Cn: Tensor | None,
    lows_CK: Tensor,
    highs_CK: Tensor,
    grid: tuple[int, int, bool],
    exponent: float,
) -> Tensor:
    """Mean error of every row under every candidate, ``(C, K)``, double."""
    quant_min, quant_max, symmetric = grid
    scale_CK = (highs_CK - lows_CK) / (quant_max - quant_min)
    scale_CK = scale_CK.clamp(min=torch.finfo(torch.float32).tiny)
    if symmetric:
        zero_point_CK = torch.full_like(scale_CK, 0 if quant_min < 0 else quant_min)
    else:
        zero_point_CK = quant_min - (lows_CK / scale_CK).round()
    zero_point_CK = zero_point_CK.clamp(quant_min, quant_max)
    # The clamp of the code, moved to the side of the rounded value: one operation less.
    bottom_CK, top_CK = quant_min - zero_point_CK, quant_max - zero_point_CK
    channels, length = values_Cn.shape
    candidates = scale_CK.shape[1]
    sums_CK = scale_CK.new_zeros(channels, candidates, dtype=torch.double)
    n_step = min(length, _ELEMENTS)
    k_step = max(1, min(candidates, _ELEMENTS // n_step))
    c_step = max(1, _ELEMENTS // (n_step * k_step))
    for c in range(0, channels, c_step):
        for n in range(0, length, n_step):
            block = (slice(c, c + c_step), slice(n, n + n_step))
            values_C1n = values_Cn[block][:, None]
            weights = None if counts_Cn is None else counts_Cn[block][:, None]
            for k in range(0, candidates, k_step):
                part = (slice(c, c + c_step), slice(k, k + k_step), None)
                scale = scale_CK[part].to(values_Cn.dtype)
                error = (values_C1n * (1.0 / scale)).round_()
                error.clamp_(bottom_CK[part].to(error), top_CK[part].to(error))
                error.mul_(scale).sub_(values_C1n).abs_().pow_(exponent)
                if weights is not None:
                    error.mul_(weights)
                sums_CK[part[:2]] += error.sum(dim=2, dtype=torch.double)
    total = length if counts_Cn is None else counts_Cn.sum(dim=1, keepdim=True)
    return sums_CK / total
