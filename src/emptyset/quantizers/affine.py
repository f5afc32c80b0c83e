"""The affine fake quantizer, per tensor and per channel.

    scale = (high - low) / (quant_max - quant_min)       low <= 0 <= high
    zero_point = quant_min - round(low / scale)
    code = clamp(round(x / scale) + zero_point, quant_min, quant_max)
    x_hat = (code - zero_point) * scale

Source: the canonical form that the seed papers' formulas reduce to once corrected; their printed
forms are in ``published.py``. Arithmetic is torch's own (``torch.fake_quantize_*_affine``), so that
PT2E's conversion to integer codes is exact.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from emptyset.errors import NotCalibratedError
from emptyset.quantizers.pt2e import FakeQuantizeBase

# Buffers that only a weight has whose rounding was learnt.
LEARNT_ROUNDING = ("base_codes", "rounding")

SMALLEST_SCALE = 1e-9
# Below this a product of two scales would underflow float32 in the runtime.


def scale_and_zero_point(
    low: Tensor, high: Tensor, quant_min: int, quant_max: int, *, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """Grid that spans ``low .. high``, 0.0 included and exactly representable.

    Args:
        low: Smallest value, 0-dim or ``(C,)`` [units of x].
        high: Largest value, shaped as ``low`` [units of x].
        quant_min: Smallest code.
        quant_max: Largest code.
        symmetric: Zero point in the middle of the codes: restricted when
            ``quant_min == -quant_max``, full range when ``quant_min == -quant_max - 1``
            (there ``scale = 2 max|x| / (quant_max - quant_min)``), 0 when ``quant_min == 0``.

    Returns:
        ``scale`` float32 [units of x per step] and ``zero_point`` int32 [step], shaped as ``low``.
    """
    low, high = low.double().clamp(max=0.0), high.double().clamp(min=0.0)
    if symmetric:
        largest = torch.maximum(-low, high)
        span = largest if quant_min == 0 else 2 * largest
        scale = (span / (quant_max - quant_min)).clamp(min=SMALLEST_SCALE).float()
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    scale = ((high - low) / (quant_max - quant_min)).clamp(min=SMALLEST_SCALE).float()
    zero_point = quant_min - (low / scale.double()).round()
    return scale, zero_point.clamp(quant_min, quant_max).to(torch.int32)


class AffineFakeQuantizer(FakeQuantizeBase):
    """Fake-quantizes whatever passes through, once its range is known.

    Scale and zero point exist from construction on, so a state dict always loads. The range is set
    by an explicit call, never as a side effect of ``forward``.

    Attributes:
        scale: ``()`` or ``(C,)`` float32 [units of x per step].
        zero_point: ``()`` or ``(C,)`` int32 [step].
        enabled: False: ``forward`` gives its input back (float mode).
        bits: Word length.
        base_codes: Of a weight whose rounding was learnt, int32, shaped as it: codes rounded down,
            before the zero point is added; else None.
        rounding: bool, shaped as ``base_codes``: where the code is one higher; else None.
        trained: While a student learns: what computes ``x_hat`` (and its gradients) instead.
    """

    scale: Tensor
    zero_point: Tensor
    calibrated: Tensor
    base_codes: Tensor | None
    rounding: Tensor | None
    per_channel = False

    def __init__(
        self,
        *,
        dtype: torch.dtype,
        quant_min: int,
        quant_max: int,
        qscheme: torch.qscheme,
        ch_axis: int | None = None,
        channels: int | None = None,
        is_dynamic: bool = False,
        **_: Any,
    ) -> None:
        super().__init__()
        del self.fake_quant_enabled, self.observer_enabled
        self.dtype, self.qscheme, self.is_dynamic = dtype, qscheme, is_dynamic
        self.quant_min, self.quant_max = quant_min, quant_max
        self.ch_axis = ch_axis
        self.symmetric = qscheme in (torch.per_tensor_symmetric, torch.per_channel_symmetric)
        shape = (channels,) if channels is not None else ()
        self.register_buffer("scale", torch.ones(shape))
        self.register_buffer("zero_point", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("calibrated", torch.tensor(False))
        for name in LEARNT_ROUNDING:
            self.register_buffer(name, None)
        self.enabled = True
        self.name = ""
        self.trained: Callable[[Tensor], Tensor] | None = None
        # Read in every forward; the buffer above is what a state dict carries.
        self._ready = False

    @property
    def bits(self) -> int:
        """Word length."""
        return (self.quant_max - self.quant_min).bit_length()

    @property
    def axis(self) -> int | None:
        """Channel axis of the tensor, or None for one scale per tensor."""
        return self.ch_axis if self.per_channel else None

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Make the grid span ``low .. high`` (``()`` or ``(C,)``) [units of x], 0.0 included."""
        if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise NotCalibratedError(
                f"Quantizer '{self.name}': the range is not finite. The images or the weights "
                "that passed through hold NaN or infinity."
            )
        scale, zero_point = scale_and_zero_point(
            low, high, self.quant_min, self.quant_max, symmetric=self.symmetric
        )
        self.set_parameters(scale, zero_point)

    @torch.no_grad()
    def set_parameters(self, scale: Tensor, zero_point: Tensor) -> None:
        """Set the grid itself; shapes ``()`` or ``(C,)``. Rounding learnt on another is lost."""
        if self.base_codes is not None and not (
            torch.equal(scale.to(self.scale), self.scale)
            and torch.equal(zero_point.to(self.zero_point), self.zero_point)
        ):
            self.forget_rounding()
        self.scale = scale.to(self.scale).reshape(scale.shape).clone()
        self.zero_point = zero_point.to(self.zero_point).reshape(zero_point.shape).clone()
        self.calibrated.fill_(True)
        self._ready = True

    @torch.no_grad()
    def stretch(self, factor: Tensor) -> None:
        """Multiply the scale; whoever calls multiplies the tensor alike.

        Codes stay, and with them a rounding that was learnt: ``learnt_values`` then gives the
        weight that it stands for now.

        Args:
            factor: ``()`` or ``(C,)``, above 0.
        """
        assert bool((factor > 0).all())
        self.scale = self.scale * factor.to(self.scale)

    @torch.no_grad()
    def set_rounding(self, base_codes: Tensor, rounding: Tensor) -> Tensor:
        """Keep a rounding that was learnt for the present grid; gives the weight it stands for.

            code = clamp(base_codes + rounding + zero_point, quant_min, quant_max)

        Args:
            base_codes: Whole numbers, shaped as the weight [step].
            rounding: bool, shaped as the weight.

        Returns:
            ``(code - zero_point) * scale`` [units of the weight]: quantizing it gives ``code``.
        """
        self.base_codes = base_codes.to(self.zero_point, copy=True)
        self.rounding = rounding.to(self.zero_point.device, torch.bool, copy=True)
        values = self.learnt_values()
        assert values is not None
        return values

    def learnt_values(self) -> Tensor | None:
        """The weight that its learnt rounding stands for; None where none was learnt."""
        if self.base_codes is None or self.rounding is None:
            return None
        scale, zero_point = self._broadcast(self.base_codes)
        codes = (self.base_codes + self.rounding + zero_point).clamp(self.quant_min, self.quant_max)
        return (codes - zero_point) * scale

    def forget_rounding(self) -> None:
        """The weight or its grid changed: what was learnt for the old ones says nothing now."""
        self.base_codes = self.rounding = None

    def low_high(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest value that the grid expresses [units of x]."""
        low = (self.quant_min - self.zero_point) * self.scale
        return low, (self.quant_max - self.zero_point) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        """``x_hat``, shaped as ``x``; ``x`` itself when switched off.

        Gradient: identity where the code is in range, 0 where it was clamped.
        """
        if not self.enabled:
            return x
        if self.trained is not None:
            return self.trained(x)
        if not self._ready:
            raise NotCalibratedError(
                f"Quantizer '{self.name}' has no range yet. Run the refiner 'calibrate' on some "
                "images first, or call `set_range(low, high)` yourself."
            )
        return self.quantize(x)

    def quantize(self, x: Tensor) -> Tensor:
        """``x_hat`` by torch's own arithmetic."""
        return torch.fake_quantize_per_tensor_affine(
            x, self.scale, self.zero_point, self.quant_min, self.quant_max
        )

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        """Scale and zero point, as PT2E's conversion asks for them."""
        return self.scale.detach(), self.zero_point.detach()

    def codes(self, x: Tensor) -> Tensor:
        """Integer codes of ``x``, int32, shaped as ``x``."""
        scale, zero_point = self._broadcast(x)
        # Multiplied by the reciprocal, as torch's own kernels do.
        codes = (x * (1.0 / scale)).round() + zero_point
        return codes.clamp(self.quant_min, self.quant_max).to(torch.int32)

    def _broadcast(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.axis is None:
            return self.scale, self.zero_point
        shape = [1] * x.dim()
        shape[self.axis] = -1
        return self.scale.view(shape), self.zero_point.view(shape)

    def convert_range_state(self) -> None:
        """Read ``calibrated`` back after a state dict was loaded."""
        self._ready = bool(self.calibrated)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("scale", "zero_point"):
            if prefix + name in state_dict:
                # Per-channel parameters take their length from the weight at calibration.
                setattr(self, name, torch.empty_like(state_dict[prefix + name]))
        # A state that says nothing of this quantizer takes nothing from it.
        if prefix + "scale" in state_dict:
            for name in LEARNT_ROUNDING:
                found = state_dict.get(prefix + name)
                setattr(self, name, None if found is None else torch.empty_like(found))
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.convert_range_state()

    def extra_repr(self) -> str:
        """Name, bits and granularity."""
        where = "per tensor" if self.axis is None else f"axis {self.axis}"
        return f"{self.name}: {self.bits} bits, {where}, codes {self.quant_min}..{self.quant_max}"


class PerTensorAffineFakeQuantizer(AffineFakeQuantizer):
    """One scale and zero point for the whole tensor."""


class PerChannelAffineFakeQuantizer(AffineFakeQuantizer):
    """One scale and zero point per channel. (PT2E asks for `PerChannel` in the name.)"""

    per_channel = True

    def quantize(self, x: Tensor) -> Tensor:
        """``x_hat`` by torch's own arithmetic."""
        axis = self.ch_axis or 0
        return torch.fake_quantize_per_channel_affine(
            x, self.scale, self.zero_point, axis, self.quant_min, self.quant_max
        )
