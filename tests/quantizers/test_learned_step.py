"""While a student learns, values stay torch's own and gradients follow the published rules."""

import pytest
import torch
from torch import Tensor

from emptyset.quantizers.affine import (
    PerChannelAffineFakeQuantizer,
    PerTensorAffineFakeQuantizer,
)
from emptyset.quantizers.learned_step import (
    FollowedRange,
    LearnedStep,
    TrackedRange,
    _by_operations,
    fake_quantize,
)

CODES = (0, 7)


def values(*shape: int) -> Tensor:
    return 2.0 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def per_tensor() -> PerTensorAffineFakeQuantizer:
    return PerTensorAffineFakeQuantizer(
        dtype=torch.uint8, quant_min=0, quant_max=7, qscheme=torch.per_tensor_affine
    )


def per_channel(axis: int = 0) -> PerChannelAffineFakeQuantizer:
    return PerChannelAffineFakeQuantizer(
        dtype=torch.int8, quant_min=-4, quant_max=3, qscheme=torch.per_channel_affine,
        ch_axis=axis, channels=3,
    )  # fmt: skip


def test_gradients_are_those_of_torchs_own_learnable_kernel() -> None:
    ours, theirs = values(5, 6).requires_grad_(), values(5, 6).requires_grad_()
    steps = [torch.tensor([0.4], requires_grad=True) for _ in range(2)]
    pull = values(6, 5).T
    zero = torch.tensor([3], dtype=torch.int32)
    out = fake_quantize(ours, steps[0].squeeze(), zero.squeeze(), axis=None, codes=CODES)
    kernel = torch._fake_quantize_learnable_per_tensor_affine(
        theirs, steps[1], zero.float(), *CODES, 1.0
    )
    assert torch.equal(out, kernel)
    (out * pull).sum().backward()
    (kernel * pull).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(steps[0].grad, steps[1].grad)


@pytest.mark.parametrize(
    # Step 1, zero point 3, codes 0..7: values -3..4. Up to half a step beyond rounds into range.
    ("mask", "passes"),
    [("code", [0, 1, 1, 1, 0]), ("value", [0, 0, 1, 0, 0]), ("none", [1, 1, 1, 1, 1])],
)
def test_masks_differ_only_half_a_step_beyond_the_range(mask: str, passes: list[int]) -> None:
    x = torch.tensor([-3.6, -3.4, 0.2, 4.4, 4.6], requires_grad=True)
    one, three = torch.tensor(1.0), torch.tensor(3, dtype=torch.int32)
    fake_quantize(x, one, three, axis=None, codes=CODES, mask=mask).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == passes


def test_a_steps_gradient_is_the_published_rule_channel_by_channel() -> None:
    x = values(4, 3, 5)
    scale = torch.tensor([0.3, 0.5, 0.9], requires_grad=True)
    zero = torch.tensor([0, -1, 1], dtype=torch.int32)
    fake_quantize(x, scale, zero, axis=1, codes=(-4, 3)).sum().backward()
    for channel in range(3):
        s, z, expected = scale[channel].item(), zero[channel].item(), 0.0
        for v in x[:, channel].flatten().tolist():
            code = round(v / s) + z
            expected += (round(v / s) - v / s) if -4 <= code <= 3 else (-4 if code < 0 else 3) - z
        assert scale.grad is not None
        assert scale.grad[channel].item() == pytest.approx(expected, abs=1e-4)


def test_the_ends_of_the_range_are_in_range() -> None:
    x = torch.tensor([-3.0, 4.0], requires_grad=True)
    one, three = torch.tensor(1.0), torch.tensor(3, dtype=torch.int32)
    fake_quantize(x, one, three, axis=None, codes=CODES, mask="value").sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1, 1]


def test_a_step_stays_above_zero_however_far_it_is_pulled_down() -> None:
    quantizer = per_tensor()
    quantizer.set_range(torch.tensor(-1.0), torch.tensor(2.0))
    step = LearnedStep(quantizer, "code")
    with torch.no_grad():
        step.parameter.fill_(-500.0)
    assert torch.isfinite(step(values(4, 5))).all()
    step.publish()
    assert quantizer.scale.item() > 0


@pytest.mark.parametrize("make", [per_tensor, per_channel])
def test_what_is_trained_is_what_is_published_to_the_last_bit(make: type) -> None:
    quantizer, x = make(), values(3, 7)
    low, high = torch.aminmax(x, dim=1)
    quantizer.set_range(*((low, high) if quantizer.per_channel else (low.min(), high.max())))
    quantizer.trained = step = LearnedStep(quantizer, "code")
    assert torch.equal(quantizer(x), quantizer.quantize(x))
    with torch.no_grad():
        step.parameter.add_(0.1)
    moved = quantizer(x).detach()
    assert not torch.equal(moved, quantizer.quantize(x))
    before = quantizer.scale.clone()
    step.publish()
    torch.testing.assert_close(
        quantizer.scale / before, torch.full_like(before, 1.1052), rtol=1e-4, atol=0
    )
    quantizer.trained = None
    assert torch.equal(moved, quantizer(x))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_followed_range_spans_the_weight_as_it_is(axis: int) -> None:
    weight = values(3, 3, 4).requires_grad_()
    quantizer = per_channel(axis)
    quantizer.trained = followed = FollowedRange(quantizer, weight)
    quantizer(weight).sum().backward()
    assert weight.grad is not None
    assert bool((weight.grad == 1).all())
    with torch.no_grad():
        weight.mul_(3.0)
    followed.publish()
    rows = weight.detach().transpose(0, axis).flatten(1)
    spans = [max(max(row), 0.0) - min(min(row), 0.0) for row in rows.tolist()]
    assert quantizer.scale.tolist() == pytest.approx([span / 7 for span in spans])


def test_a_tracked_range_moves_until_it_is_fixed() -> None:
    quantizer = per_tensor()
    quantizer.trained = tracked = TrackedRange(quantizer, legacy=False)
    for top in (2.0, 4.0):
        quantizer(torch.tensor([0.0, top]))
    expected = (0.9 * 0.1 * 2.0 + 0.1 * 4.0) / (1 - 0.9**2)
    assert quantizer.scale.item() == pytest.approx(expected / 7)
    tracked.tracking = False
    quantizer(torch.tensor([0.0, 100.0]))
    assert quantizer.scale.item() == pytest.approx(expected / 7)


def test_a_fixed_range_that_was_restored_is_published() -> None:
    seen, quantizer = TrackedRange(per_tensor(), legacy=False), per_tensor()
    seen(torch.tensor([-1.0, 4.6]))
    restored = TrackedRange(quantizer, legacy=False)
    restored.tracking = False
    restored.publish()
    assert quantizer.scale.item() == 1.0
    restored.load_state(seen.state())
    restored.publish()
    assert quantizer.scale.item() == pytest.approx((4.6 + 1.0) / 7)


def test_the_legacy_average_compounds() -> None:
    quantizer = per_tensor()
    quantizer.trained = TrackedRange(quantizer, legacy=True)
    for _ in range(2):
        quantizer(torch.tensor([0.0, 1.0]))
    assert quantizer.low_high()[1].item() == pytest.approx((0.9 + 0.1) / (1 - 0.9**2))


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_the_operations_that_are_compiled_give_torchs_values_to_the_last_bit(
    axis: int | None,
) -> None:
    x = torch.cat([values(6, 7, 500), 0.5 * torch.arange(-42.0, 42.0).view(6, 7, 2)], dim=2)
    count = 1 if axis is None else x.shape[axis]
    scale = torch.linspace(0.31, 0.9, count)
    zero_point = torch.arange(count, dtype=torch.int32) % 5
    with torch.no_grad():
        if axis is None:
            scale, zero_point = scale[0], zero_point[0]
            expected = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, *CODES)
        else:
            expected = torch.fake_quantize_per_channel_affine(x, scale, zero_point, axis, *CODES)
        found, inside = _by_operations(x, scale, zero_point, axis, CODES)
    assert torch.equal(found, expected)
    # In range: what clamping leaves as it is.
    low, high = (0 - zero_point) * scale, (7 - zero_point) * scale
    if axis is not None:
        shape = [-1 if dimension == axis else 1 for dimension in range(3)]
        low, high = low.view(shape), high.view(shape)
    beyond = (expected == low) & (x < low - 0.5 * scale.max()) | (expected == high) & (
        x > high + 0.5 * scale.max()
    )
    assert not inside[beyond].any()
    assert inside[(expected > low) & (expected < high)].all()
