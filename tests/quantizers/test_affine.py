"""The affine fake quantizer against a list of everything its grid can express."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from emptyset.errors import NotCalibratedError
from emptyset.quantizers.affine import (
    AffineFakeQuantizer,
    PerChannelAffineFakeQuantizer,
    PerTensorAffineFakeQuantizer,
    scale_and_zero_point,
)

AFFINE, SYMMETRIC = torch.per_tensor_affine, torch.per_tensor_symmetric
GRIDS = {
    "affine": (AFFINE, 0, 15),
    "affine 3 bits": (AFFINE, 0, 7),
    "symmetric restricted": (SYMMETRIC, -7, 7),
    "symmetric full range": (SYMMETRIC, -8, 7),
    "symmetric unsigned": (SYMMETRIC, 0, 15),
}


def per_tensor(scheme: torch.qscheme, low: int, high: int) -> AffineFakeQuantizer:
    return PerTensorAffineFakeQuantizer(
        dtype=torch.uint8 if low == 0 else torch.int8,
        quant_min=low, quant_max=high, qscheme=scheme,
    )  # fmt: skip


def per_channel(axis: int) -> AffineFakeQuantizer:
    return PerChannelAffineFakeQuantizer(
        dtype=torch.int8, quant_min=-8, quant_max=7, qscheme=torch.per_channel_affine, ch_axis=axis
    )


def nearest(values: Tensor, scale: float, zero_point: int, low: int, high: int) -> list[float]:
    """Oracle: every value the grid can express, and of these the closest."""
    reachable = [(code - zero_point) * scale for code in range(low, high + 1)]
    return [min(reachable, key=lambda r, v=v: abs(r - v)) for v in values.flatten().tolist()]


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3)) * 2


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize(("low", "high"), [(-1.3, 2.9), (0.0, 1.7), (-0.4, 0.0)])
def test_every_value_becomes_the_nearest_that_the_grid_expresses(
    kind: str, low: float, high: float
) -> None:
    scheme, bottom, top = GRIDS[kind]
    quantizer = per_tensor(scheme, bottom, top)
    quantizer.set_range(torch.tensor(low), torch.tensor(high))
    x = draw(7, 31)
    expected = nearest(x, quantizer.scale.item(), int(quantizer.zero_point), bottom, top)
    assert quantizer(x).flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_each_channel_has_a_grid_of_its_own() -> None:
    quantizer, x = per_channel(axis=1), draw(5, 3, 2)
    low, high = torch.tensor([-0.5, -3.0, -1.0]), torch.tensor([0.7, 0.2, 1.5])
    quantizer.set_range(low, high)
    for channel in range(3):
        scale, zero_point = quantizer.scale[channel].item(), int(quantizer.zero_point[channel])
        assert scale == pytest.approx((high - low)[channel].item() / 15)
        expected = nearest(x[:, channel], scale, zero_point, -8, 7)
        assert quantizer(x)[:, channel].flatten().tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("low", "code"), [(-1.2, 4), (-1.3, 5), (0.0, 0), (-4.2, 15), (-9.0, 15)])
def test_the_zero_point_is_the_code_nearest_to_zero(low: float, code: int) -> None:
    # A step is (high - low) / 15: 0.28 where high = low + 4.2.
    high = max(low + 4.2, 0.0)
    _, zero_point = scale_and_zero_point(
        torch.tensor(low), torch.tensor(high), 0, 15, symmetric=False
    )
    assert int(zero_point) == code


def test_printed_ranges_of_the_symmetric_grids() -> None:
    low, high = torch.tensor(-3.0), torch.tensor(2.0)
    restricted, _ = scale_and_zero_point(low, high, -7, 7, symmetric=True)
    full, _ = scale_and_zero_point(low, high, -8, 7, symmetric=True)
    unsigned, zero = scale_and_zero_point(torch.tensor(0.0), high, 0, 15, symmetric=True)
    assert restricted.item() == pytest.approx(3 / 7)
    assert full.item() == pytest.approx(2 * 3 / 15)
    assert (unsigned.item(), int(zero)) == (pytest.approx(2 / 15), 0)


@pytest.mark.parametrize("kind", GRIDS)
@given(
    low=st.floats(-50, 0, width=32), high=st.floats(0, 50, width=32), seed=st.integers(0, 2**31 - 1)
)
def test_zero_stays_zero_and_a_second_pass_changes_nothing(
    kind: str, low: float, high: float, seed: int
) -> None:
    scheme, bottom, top = GRIDS[kind]
    quantizer = per_tensor(scheme, bottom, top)
    quantizer.set_range(torch.tensor(low), torch.tensor(high))
    x = 30 * torch.randn(57, generator=torch.Generator().manual_seed(seed))
    once = quantizer(x)
    assert quantizer(torch.zeros(1)).item() == 0.0
    assert torch.equal(quantizer(once), once)


@pytest.mark.parametrize("scale", [0.25, 0.1, 1e-3])
def test_codes_and_values_say_the_same(scale: float) -> None:
    quantizer = per_tensor(AFFINE, 0, 15)
    quantizer.set_parameters(torch.tensor(scale), torch.tensor(5, dtype=torch.int32))
    x = draw(301) * 10 * scale
    codes = quantizer.codes(x)
    assert (int(codes.min()), int(codes.max())) == (0, 15)
    assert torch.equal((codes - 5) * quantizer.scale, quantizer(x))


@pytest.mark.parametrize("scale", [0.1, 0.07, 0.0123])
def test_codes_between_two_are_those_of_torchs_own_kernel(scale: float) -> None:
    step, zero_point = torch.tensor(scale), torch.tensor(31, dtype=torch.int32)
    quantizer = per_tensor(AFFINE, 0, 255)
    quantizer.set_parameters(step, zero_point)
    x = (torch.arange(-31, 224) + 0.5) * step
    expected = torch.fake_quantize_per_tensor_affine(x, step, zero_point, 0, 255)
    assert torch.equal((quantizer.codes(x) - 31) * step, expected)


@pytest.mark.parametrize(("low", "high"), [(1.0, 4.5), (-4.5, -1.0)])
def test_a_range_on_one_side_of_zero_is_stretched_to_it(low: float, high: float) -> None:
    scale, zero_point = scale_and_zero_point(
        torch.tensor(low), torch.tensor(high), 0, 15, symmetric=False
    )
    assert scale.item() == pytest.approx(4.5 / 15)
    assert int(zero_point) == (0 if low > 0 else 15)


def test_a_range_of_very_small_values_is_spanned_too() -> None:
    scale, _ = scale_and_zero_point(torch.tensor(-3e-8), torch.tensor(9e-8), 0, 15, symmetric=False)
    assert scale.item() == pytest.approx(12e-8 / 15)


def test_low_and_high_are_the_ends_of_the_grid() -> None:
    quantizer = per_tensor(AFFINE, 0, 7)
    quantizer.set_range(torch.tensor(-1.0), torch.tensor(6.0))
    assert [v.item() for v in quantizer.low_high()] == pytest.approx([-1.0, 6.0])


def test_the_gradient_passes_in_range_and_stops_outside() -> None:
    quantizer = per_tensor(AFFINE, 0, 3)
    quantizer.set_range(torch.tensor(-1.0), torch.tensor(2.0))
    x = torch.tensor([-2.0, -0.9, 0.3, 1.9, 3.0], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_without_a_range_the_first_call_says_what_to_do() -> None:
    quantizer = per_tensor(AFFINE, 0, 15)
    quantizer.name = "layer1.relu.output"
    with pytest.raises(NotCalibratedError, match=r"layer1\.relu\.output.*calibrate"):
        quantizer(torch.ones(2))


def test_switched_off_it_hands_its_input_on_even_without_a_range() -> None:
    quantizer = per_tensor(AFFINE, 0, 15)
    quantizer.enabled = False
    x = draw(5)
    assert quantizer(x) is x


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_range_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(NotCalibratedError, match="not finite"):
        per_tensor(AFFINE, 0, 15).set_range(torch.tensor(0.0), torch.tensor(bad))


@pytest.mark.parametrize("value", [0.0, 1e-30])
def test_a_tensor_of_zeros_gets_a_scale_above_zero(value: float) -> None:
    quantizer = per_tensor(AFFINE, 0, 15)
    quantizer.set_range(torch.tensor(0.0), torch.tensor(value))
    assert quantizer.scale.item() > 0
    assert quantizer(torch.zeros(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_a_state_dict_loads_into_a_fresh_quantizer_whatever_its_shape(axis: int | None) -> None:
    def fresh() -> AffineFakeQuantizer:
        return per_tensor(AFFINE, 0, 15) if axis is None else per_channel(axis)

    x, before = draw(3, 5), fresh()
    size = () if axis is None else (x.shape[axis],)
    before.set_range(
        torch.full(size, -1.2), torch.linspace(0.5, 2, 5)[: size[0]] if size else x.max()
    )
    after = fresh()
    after.load_state_dict(before.state_dict())
    assert torch.equal(after(x), before(x))
    untouched = fresh()
    untouched.load_state_dict(fresh().state_dict())
    with pytest.raises(NotCalibratedError):
        untouched(x)


@pytest.mark.parametrize(("bits", "signed"), [(b, s) for b in (2, 3, 4, 8) for s in (False, True)])
def test_bits_count_the_codes(bits: int, signed: bool) -> None:
    low = -(2 ** (bits - 1)) if signed else 0
    assert per_tensor(AFFINE, low, low + 2**bits - 1).bits == bits
    if signed and bits > 2:
        assert per_tensor(SYMMETRIC, low + 1, low + 2**bits - 1).bits == bits
