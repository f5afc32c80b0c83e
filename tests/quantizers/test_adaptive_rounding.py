"""Learnt rounding: formulas against plain numbers, and the buffers that a quantizer keeps."""

import math

import pytest
import torch

from emptyset.quantizers.adaptive_rounding import (
    relaxed_weight,
    rounded_up,
    rounding_penalty,
    rounding_share,
    split,
)
from emptyset.quantizers.affine import PerChannelAffineFakeQuantizer
from emptyset.quantizers.learned_step import LearnedStep


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.double)


def quantizer(channels: int = 4, bits: int = 3) -> PerChannelAffineFakeQuantizer:
    made = PerChannelAffineFakeQuantizer(
        dtype=torch.int8, quant_min=-(2 ** (bits - 1)), quant_max=2 ** (bits - 1) - 1,
        qscheme=torch.per_channel_affine, ch_axis=0,
    )  # fmt: skip
    scale = 0.1 + torch.rand(channels, generator=torch.Generator().manual_seed(1))
    made.set_parameters(scale, torch.arange(channels, dtype=torch.int32) - 1)
    return made


def test_a_share_is_what_is_left_over_at_the_start() -> None:
    weight, scale = draw(5, 7), torch.tensor(0.37, dtype=torch.double)
    base, logits = split(weight, scale)
    for value, whole, share in zip(
        weight.flatten().tolist(),
        base.flatten().tolist(),
        rounding_share(logits).flatten().tolist(),
        strict=True,
    ):
        assert whole == math.floor(value / 0.37)
        assert share == pytest.approx(value / 0.37 - whole, abs=1e-9)


def test_the_first_bit_rounds_to_nearest_ties_to_even() -> None:
    weight = torch.tensor([-2.5, -1.5, -0.5, 0.0, 0.5, 1.5, 2.5, 0.49, 0.51, -0.49, -0.51, 3.0])
    base, logits = split(weight, torch.tensor(1.0))
    # Python rounds half to even, as torch does.
    assert (base + rounded_up(logits)).tolist() == [round(v) for v in weight.tolist()]


@pytest.mark.parametrize("scale", [0.1, 0.07, 0.0123])
def test_the_first_bit_is_that_of_torchs_own_kernel_between_two_codes(scale: float) -> None:
    step = torch.tensor(scale)
    weight = (torch.arange(-127, 127) + 0.5) * step
    base, logits = split(weight, step)
    zero = torch.tensor(0, dtype=torch.int32)
    expected = torch.fake_quantize_per_tensor_affine(weight, step, zero, -128, 127)
    assert torch.equal((base + rounded_up(logits)) * step, expected)


def test_the_penalty_is_the_sum_over_plain_numbers_and_0_for_decided_bits() -> None:
    share = torch.rand(6, 5, generator=torch.Generator().manual_seed(2), dtype=torch.double)
    expected = sum(1 - abs(2 * h - 1) ** 3.5 for h in share.flatten().tolist())
    assert rounding_penalty(share, 3.5).item() == pytest.approx(expected, rel=1e-12)
    assert rounding_penalty(share.round(), 3.5).item() == 0


def test_the_relaxed_weight_has_the_gradients_of_its_closed_form() -> None:
    base, share = torch.tensor([[-4.0, -2.0, 0.0], [1.0, 2.0, 3.0]]).double(), draw(2, 3).sigmoid()
    scale = torch.tensor([[0.3], [0.7]], dtype=torch.double, requires_grad=True)
    zero, low, high = torch.tensor([[1.0], [-1.0]]).double(), torch.tensor(-2.0), torch.tensor(1.0)
    share.requires_grad_()
    out = relaxed_weight(base, share, scale, zero, low, high)
    pull = draw(2, 3) + 2
    out.backward(pull)
    for row in range(2):
        expected_scale = 0.0
        for column in range(3):
            code = base[row, column].item() + share[row, column].item() + zero[row].item()
            kept = min(max(code, -2.0), 1.0)
            weight = scale[row].item() * (kept - zero[row].item())
            assert out[row, column].item() == pytest.approx(weight)
            passes = -2.0 <= code <= 1.0
            expected = pull[row, column].item() * scale[row].item() * passes
            assert share.grad[row, column].item() == pytest.approx(expected)
            expected_scale += pull[row, column].item() * (kept - zero[row].item())
        assert scale.grad[row].item() == pytest.approx(expected_scale)


def test_a_clipped_share_takes_no_gradient() -> None:
    logits = torch.tensor([-9.0, -2.0, 0.0, 2.0, 9.0], requires_grad=True)
    rounding_share(logits).sum().backward()
    assert (logits.grad == 0).tolist() == [True, False, False, False, True]


def test_quantizing_the_weight_gives_the_learnt_codes() -> None:
    made, generator = quantizer(), torch.Generator().manual_seed(5)
    base = torch.randint(-6, 6, (4, 3, 2), generator=generator)
    rounding = torch.rand(4, 3, 2, generator=generator) < 0.5
    weight = made.set_rounding(base, rounding)
    zero = made.zero_point.view(4, 1, 1)
    expected = (base + rounding + zero).clamp(-4, 3)
    assert torch.equal(made.codes(weight), expected.to(torch.int32))
    assert torch.equal(made(weight), weight)
    assert torch.equal(made.base_codes, base.to(torch.int32))
    assert torch.equal(made.rounding, rounding)


def test_the_rounding_travels_in_the_state_dict_and_only_where_there_is_one() -> None:
    made, other = quantizer(), quantizer()
    assert made.state_dict().keys() == {"scale", "zero_point", "calibrated"}
    made.set_rounding(torch.ones(4, 3), torch.eye(4, 3) > 0)
    other.load_state_dict(made.state_dict())
    assert torch.equal(other.base_codes, made.base_codes)
    assert torch.equal(other.rounding, made.rounding)
    other.load_state_dict({}, strict=False)
    assert other.rounding is not None
    other.load_state_dict(quantizer().state_dict())
    assert other.base_codes is None
    assert other.rounding is None


def test_rounding_is_forgotten_when_the_grid_changes_or_the_weight_is_trained() -> None:
    made = quantizer()
    made.set_rounding(torch.ones(4, 3), torch.eye(4, 3) > 0)
    made.set_parameters(made.scale.clone(), made.zero_point.clone())
    assert made.rounding is not None
    made.set_parameters(made.scale * 1.5, made.zero_point)
    assert made.rounding is None
    made.set_rounding(torch.ones(4, 3), torch.eye(4, 3) > 0)
    made.set_parameters(made.scale, made.zero_point + 1)
    assert made.rounding is None
    made.set_rounding(torch.ones(4, 3), torch.eye(4, 3) > 0)
    LearnedStep(made, "code")
    assert made.base_codes is None


def test_a_stretched_grid_keeps_learnt_codes_and_gives_their_new_weight() -> None:
    made, generator = quantizer(), torch.Generator().manual_seed(5)
    base = torch.randint(-6, 6, (4, 3, 2), generator=generator)
    rounding = torch.rand(4, 3, 2, generator=generator) < 0.5
    weight = made.set_rounding(base, rounding)
    codes, scale, zero = made.codes(weight), made.scale.clone(), made.zero_point.clone()
    factor = torch.tensor([0.3, 1.0, 1.7, 123.0])
    made.stretch(factor)
    assert torch.equal(made.scale, scale * factor)
    assert torch.equal(made.zero_point, zero)
    assert torch.equal(made.base_codes, base.to(torch.int32))
    assert torch.equal(made.rounding, rounding)
    stretched = made.learnt_values()
    torch.testing.assert_close(stretched, weight * factor.view(4, 1, 1))
    assert torch.equal(made.codes(stretched), codes)
    assert torch.equal(made(stretched), stretched)


def test_a_grid_without_learnt_rounding_is_stretched_too() -> None:
    made = quantizer()
    weight, factor = torch.randn(4, 3), torch.tensor([0.25, 1.0, 2.0, 8.0])
    codes = made.codes(weight)
    made.stretch(factor)
    assert made.learnt_values() is None
    assert torch.equal(made.codes(weight * factor.view(4, 1)), codes)
