"""Quantized activations: torch's values, LSQ's gradients by a loop, QDrop's choice."""

import pytest
import torch

from emptyset.reconstruction.activations import quantized_activation

SCALE, ZERO, LOW, HIGH = 0.23, 3.0, 0.0, 7.0


def case(dtype: torch.dtype = torch.double) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(3, 4, 5, generator=generator, dtype=torch.double).to(dtype)
    pull = torch.randn(3, 4, 5, generator=generator, dtype=torch.double).to(dtype)
    return x, pull, torch.rand(3, 4, 5, generator=generator) < 0.5


def run(
    x: torch.Tensor, pull: torch.Tensor, chosen: torch.Tensor | None, mask: str, fused: bool
) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    scale = torch.tensor(SCALE, dtype=x.dtype, requires_grad=True)
    if chosen is not None and not fused:
        chosen = chosen.to(x.dtype)
    grid = [torch.tensor(v, dtype=x.dtype) for v in (ZERO, LOW, HIGH)]
    out = quantized_activation(x, scale, *grid, chosen=chosen, mask=mask, fused=fused)
    return [out.detach(), *torch.autograd.grad(out, [x, scale], pull)]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("mask", ["code", "value", "none"])
@pytest.mark.parametrize("drops", [True, False])
def test_values_and_gradients_are_those_of_a_loop(fused: bool, mask: str, drops: bool) -> None:
    x, pull, chosen = case()
    out, to_x, to_scale = run(x, pull, chosen if drops else None, mask, fused)
    expected_scale = 0.0
    for index in range(x.numel()):
        value, gradient = x.flatten()[index].item(), pull.flatten()[index].item()
        if drops and not chosen.flatten()[index]:
            assert out.flatten()[index].item() == value
            assert to_x.flatten()[index].item() == gradient
            continue
        position = value / SCALE
        code = round(position) + ZERO
        judged = code if mask == "code" else position + ZERO
        inside = LOW <= judged <= HIGH
        kept = min(max(code, LOW), HIGH)
        assert out.flatten()[index].item() == pytest.approx((kept - ZERO) * SCALE, abs=1e-12)
        passes = inside or mask == "none"
        assert to_x.flatten()[index].item() == pytest.approx(gradient * passes, abs=1e-12)
        inside_code = LOW <= code <= HIGH if mask == "none" else inside
        expected_scale += gradient * (kept - ZERO - (position if inside_code else 0.0))
    assert to_scale.item() == pytest.approx(expected_scale, rel=1e-9)


@pytest.mark.parametrize("fused", [True, False])
def test_values_are_torchs_own_to_the_last_bit(fused: bool) -> None:
    x, pull, _ = case(torch.float32)
    out, *_ = run(x, pull, None, "code", fused)
    assert torch.equal(out, torch.fake_quantize_per_tensor_affine(x, SCALE, 3, 0, 7))
