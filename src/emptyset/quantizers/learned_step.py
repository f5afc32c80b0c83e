"""What a fake quantizer computes while its student learns: four ways to set the grid.

=================  ==========================================  ================================
``LearnedStep``    the step follows the loss                   weights and activations
``FollowedRange``  min and max of the weight, at every update  weights, published protocols
``TrackedRange``   moving average of min and max, then fixed   activations, published protocols
``ExtremeRange``   smallest and largest value so far           activations, ZAQ
=================  ==========================================  ================================

Values are torch's own (``torch.fake_quantize_*_affine``), so that what was trained is to the last
bit what is exported; only gradients are ours. Nothing here synchronises with the host once the
ranges are fixed.
"""

from typing import Any

import torch
from torch import Tensor

from emptyset.quantizers.affine import (
    SMALLEST_SCALE,
    AffineFakeQuantizer,
    scale_and_zero_point,
)
from emptyset.ranges.moving_average import MovingAverageConfig, MovingAverageEstimator

ATEN = torch.ops.aten
MASKS = ("code", "value", "none")


class _FakeQuantize(torch.autograd.Function):
    """Torch's values with the learned-step-size gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        axis: int | None,
        codes: tuple[int, int],
        mask: str,
    ) -> Tensor:
        # The kernels behind torch.fake_quantize_*; they also tell where the code was in range.
        # Compiled, the same operations one by one: they fuse with what stands around them. On a
        # processor, too: the kernel for one scale takes more than twice as long as all of them.
        if torch.compiler.is_compiling() or x.device.type == "cpu":
            out, inside = _by_operations(x, scale, zero_point, axis, codes)
        elif axis is None:
            on = torch.ones(1, dtype=torch.long, device=x.device)
            out, inside = ATEN._fake_quantize_per_tensor_affine_cachemask_tensor_qparams(
                x, scale, zero_point, on, *codes
            )
        else:
            out, inside = ATEN.fake_quantize_per_channel_affine_cachemask(
                x, scale, zero_point, axis, *codes
            )
        if mask == "value":
            position = x * _along(axis, 1.0 / scale, x) + _along(axis, zero_point, x)
            inside = (position >= codes[0]) & (position <= codes[1])
        ctx.save_for_backward(x, scale, out, inside)
        ctx.axis, ctx.mask = axis, mask
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, scale, out, inside = ctx.saved_tensors
        to_x = gradient if ctx.mask == "none" else gradient * inside
        to_scale = None
        if ctx.needs_input_grad[1]:
            # Inside: round(x/s) - x/s. Outside: the end's code less zero point, which is out/s.
            pull = (out - x * inside).mul_(gradient)
            others = [axis for axis in range(x.dim()) if axis != ctx.axis]
            to_scale = (pull.sum(others) if others else pull) / scale
        return to_x, to_scale, None, None, None, None


def _by_operations(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, codes: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """``x_hat`` and where the code was in range, as torch's kernels compute them."""
    offset = _along(axis, zero_point, x)
    code = (x * _along(axis, 1.0 / scale, x)).round_().add_(offset)
    kept = code.clamp(*codes)
    inside = kept == code
    return kept.sub_(offset).mul_(_along(axis, scale, x)), inside


def _along(axis: int | None, values: Tensor, x: Tensor) -> Tensor:
    """Shaped so that they broadcast along the axis of ``x``."""
    if axis is None:
        return values
    shape = [1] * x.dim()
    shape[axis] = -1
    return values.view(shape)


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    *,
    axis: int | None,
    codes: tuple[int, int],
    mask: str = "code",
) -> Tensor:
    """Replace every value by the nearest one of the grid, with gradients to ``x`` and ``scale``.

    Args:
        x: Any shape [units of x].
        scale: ``()``, or ``(C,)`` along ``axis`` [units of x per step].
        zero_point: int32, shaped as ``scale`` [step].
        axis: Channel axis, or None for one scale.
        codes: Smallest and largest code.
        mask: Where the gradient passes to ``x``: ``code``: where the rounded code is in range, so
            up to half a step beyond it (BRECQ, QDrop); ``value``: where the value itself is in
            range (LSQ, Genie); ``none``: everywhere (ZeroQ and its descendants).

    Returns:
        Shaped as ``x`` [units of x].

    Gradient:
        To ``scale``: ``round(x/s) - x/s`` where x is in range, else the code at that end less the
        zero point.

    Source:
        Learned step size quantization, Esser et al. 2020, arXiv:1902.08153, eq. 3 (with a zero
        point, as in LSQ+).
    """
    out: Tensor = _FakeQuantize.apply(x, scale, zero_point, axis, codes, mask)  # type: ignore[no-untyped-call]
    return out


class LearnedStep:
    """The quantizer's step is learnt: ``scale = start · exp(parameter)``.

    In this form a step stays positive, and a learning rate is a relative change whatever the
    tensor's units. The zero point stays.

    Attributes:
        parameter: Shaped as the scale; a leaf that asks for its gradient.
    """

    def __init__(self, quantizer: AffineFakeQuantizer, mask: str) -> None:
        self._quantizer, self._mask = quantizer, mask
        self._start = quantizer.scale.detach().clone()
        quantizer.forget_rounding()
        self._codes = (quantizer.quant_min, quantizer.quant_max)
        self.parameter = torch.zeros_like(self._start).requires_grad_()

    def __call__(self, x: Tensor) -> Tensor:
        """``x_hat`` with gradients, shaped as ``x``."""
        quantizer = self._quantizer
        return fake_quantize(
            x, self._scale(), quantizer.zero_point,
            axis=quantizer.axis, codes=self._codes, mask=self._mask,
        )  # fmt: skip

    def _scale(self) -> Tensor:
        return (self._start * self.parameter.exp()).clamp(min=SMALLEST_SCALE)

    @torch.no_grad()
    def publish(self) -> None:
        """Give the quantizer the step as it is now."""
        self._quantizer.scale.copy_(self._scale())


class FollowedRange:
    """A weight's grid spans its smallest to its largest value, channel by channel, always."""

    def __init__(self, quantizer: AffineFakeQuantizer, weight: Tensor) -> None:
        self._quantizer, self._weight = quantizer, weight
        self.publish()

    def __call__(self, x: Tensor) -> Tensor:
        """``x_hat``; the gradient passes unchanged."""
        return _passed_on(self._quantizer, x)

    @torch.no_grad()
    def publish(self) -> None:
        """Span the weight as it is now."""
        quantizer, weight = self._quantizer, self._weight
        values = weight.transpose(0, quantizer.axis or 0).flatten(1)
        _set(quantizer, *torch.aminmax(values, dim=1))


class TrackedRange:
    """An activation's grid follows the batches' moving average until it is fixed.

    Attributes:
        estimator: What was seen.
        tracking: Whether ``forward`` still moves the range.
    """

    def __init__(self, quantizer: AffineFakeQuantizer, *, legacy: bool) -> None:
        self._quantizer = quantizer
        config = MovingAverageConfig(legacy_ema=legacy)
        self.estimator = MovingAverageEstimator(
            config, None, quantizer.quant_min, quantizer.symmetric
        )
        self.tracking = True

    def __call__(self, x: Tensor) -> Tensor:
        """``x_hat``; the gradient passes unchanged."""
        if self.tracking:
            self.estimator.update(x.detach())
            self.publish()
        return _passed_on(self._quantizer, x)

    def publish(self) -> None:
        """Set the range seen so far, if anything was."""
        if self.estimator.state():
            _set(self._quantizer, *self.estimator.low_high())

    def state(self) -> dict[str, Tensor]:
        """What the estimator saw."""
        return self.estimator.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from ``state``."""
        self.estimator.load_state(state)


class ExtremeRange:
    """An activation's grid spans the smallest to the largest value seen; nothing waits for it.

    Source: ZAQ, Liu et al. 2021, arXiv:2103.15263, released code.
    Differs from source: values that are only tested with do not move it.

    Attributes:
        tracking: Whether ``forward`` still moves the range.
    """

    def __init__(self, quantizer: AffineFakeQuantizer) -> None:
        self._quantizer = quantizer
        self._ends: Tensor | None = None
        self.tracking = True

    def __call__(self, x: Tensor) -> Tensor:
        """``x_hat``; the gradient passes unchanged."""
        if self.tracking:
            ends = torch.stack(torch.aminmax(x.detach())).float()
            if self._ends is not None:
                low = torch.minimum(ends[0], self._ends[0])
                ends = torch.stack([low, torch.maximum(ends[1], self._ends[1])])
            self._ends = ends
            self.publish()
        return _passed_on(self._quantizer, x)

    def publish(self) -> None:
        """Set the range seen so far, if anything was."""
        if self._ends is not None:
            _set(self._quantizer, self._ends[0], self._ends[1])

    def state(self) -> dict[str, Tensor]:
        """The ends ``(2,)``; empty before the first value."""
        return {} if self._ends is None else {"ends": self._ends}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from ``state``."""
        self._ends = state["ends"].to(self._quantizer.scale.device) if state else None


def _set(quantizer: AffineFakeQuantizer, low: Tensor, high: Tensor) -> None:
    """``set_range`` without its check, which would wait for the device."""
    quantizer.set_parameters(
        *scale_and_zero_point(
            low, high, quantizer.quant_min, quantizer.quant_max, symmetric=quantizer.symmetric
        )
    )


def _passed_on(quantizer: AffineFakeQuantizer, x: Tensor) -> Tensor:
    return fake_quantize(
        x, quantizer.scale, quantizer.zero_point,
        axis=quantizer.axis, codes=(quantizer.quant_min, quantizer.quant_max), mask="none",
    )  # fmt: skip
