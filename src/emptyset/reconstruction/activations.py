"""Activations while a unit learns: fake quantization with LSQ's gradients and QDrop's choice.

Written twice, as what is fast when a compiler fuses it (comparisons and choices) is slow when each
operation runs by itself. Both give the same values.
"""

from typing import Any

import torch
from torch import Tensor


class _Fused(torch.autograd.Function):
    """For compilers: operation by operation."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        low: Tensor,
        high: Tensor,
        chosen: Tensor | None,
        mask: str,
    ) -> Tensor:
        code = torch.round(x * (1.0 / scale)) + zero_point
        out = (torch.clamp(code, low, high) - zero_point) * scale
        ctx.save_for_backward(x, scale, zero_point, low, high, chosen)
        ctx.mask = mask
        return out if chosen is None else torch.where(chosen, out, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, scale, zero_point, low, high, chosen = ctx.saved_tensors
        position = x * (1.0 / scale)
        code = torch.round(position) + zero_point
        judged = position + zero_point if ctx.mask == "value" else code
        quantized = gradient if chosen is None else torch.where(chosen, gradient, 0.0)
        to_scale = None
        if ctx.needs_input_grad[1]:
            # Inside: round(x/s) - x/s. Outside: the end's code less the zero point.
            pull = torch.clamp(code, low, high) - zero_point - _inside(judged, low, high, position)
            to_scale = (quantized * pull).sum().reshape(scale.shape)
        if ctx.mask == "none":
            return gradient, to_scale, None, None, None, None, None
        passed = _inside(judged, low, high, quantized)
        if chosen is not None:
            passed = torch.where(chosen, passed, gradient)
        return passed, to_scale, None, None, None, None, None


def _inside(judged: Tensor, low: Tensor, high: Tensor, values: Tensor) -> Tensor:
    """The values where ``low <= judged <= high``, 0 elsewhere.

    One after the other: compiled, a mask made of two comparisons would go through memory.
    """
    return torch.where(judged >= low, torch.where(judged <= high, values, 0.0), 0.0)


class _Eager(torch.autograd.Function):
    """For eager mode: in place, and products with 0 and 1, as ``torch.where`` is slow on a CPU."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        low: Tensor,
        high: Tensor,
        chosen: Tensor | None,
        mask: str,
    ) -> Tensor:
        judged = x * (1.0 / scale)
        out = judged.round()
        judged = (judged if mask == "value" else out).add(zero_point)
        inside = judged.clamp(low, high).eq_(judged)
        out = out.add_(zero_point).clamp_(low, high).sub_(zero_point).mul_(scale)
        ctx.save_for_backward(x, scale, out, inside, chosen)
        ctx.mask = mask
        # Exact at both ends.
        return out if chosen is None else torch.lerp(x, out, chosen)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, scale, out, inside, chosen = ctx.saved_tensors
        quantized = gradient if chosen is None else gradient * chosen
        to_scale = None
        if ctx.needs_input_grad[1]:
            pull = torch.addcmul(out, x, inside, value=-1)
            to_scale = (pull.mul_(quantized).sum() / scale).reshape(scale.shape)
        if ctx.mask == "none":
            return gradient, to_scale, None, None, None, None, None
        passed = torch.addcmul(gradient, quantized, inside - 1)
        return passed, to_scale, None, None, None, None, None


def quantized_activation(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    chosen: Tensor | None = None,
    mask: str = "code",
    fused: bool = True,
) -> Tensor:
    """Fake-quantize ``x``, or those of its elements that were chosen.

        x_hat = (clamp(round(x / s) + z, low, high) - z) * s         out = chosen ? x_hat : x

    Args:
        x: Any shape [units of x].
        scale: s, 0-dim [units of x per step].
        zero_point: z, 0-dim, as floating point [step].
        low: Smallest code, 0-dim.
        high: Largest code, 0-dim.
        chosen: Shaped as ``x``, bool (``fused``) or 0 and 1 as floating point; None: all.
        mask: Where the gradient passes to ``x``: see ``quantizers.learned_step.fake_quantize``.
        fused: Which of the two forms.

    Returns:
        Shaped as ``x`` [units of x].

    Gradient:
        To ``scale``, of the chosen: ``round(x/s) - x/s`` in range, else the code at that end less
        z. To ``x``: 1 where it was not chosen.

    Source:
        Learned step size quantization, Esser et al. 2020, arXiv:1902.08153; QDrop, Wei et al. 2022,
        arXiv:2203.05740.
    """
    function = _Fused if fused else _Eager
    out: Tensor = function.apply(x, scale, zero_point, low, high, chosen, mask)  # type: ignore[no-untyped-call]
    return out
