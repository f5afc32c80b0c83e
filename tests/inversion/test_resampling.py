"""Crops, pastes, rolls against slices and torch's own resizing, one image at a time."""

import itertools
from typing import Any

import pytest
import torch
from torch.nn.functional import interpolate

from emptyset.inversion import resampling
from emptyset.inversion.local_reinforcement import LocalReinforcement
from emptyset.inversion.resampling import (
    draw_crops,
    draw_pasted_boxes,
    draw_roll,
    rolled,
    sampled,
)


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 2, 9, 13, generator=torch.Generator().manual_seed(1))


def test_each_image_gets_its_own_crop_resized_as_torch_resizes_it() -> None:
    given = images(40)
    drawn = draw_crops(
        40, 9, 13, smallest=0.3, probability=1.0, generator=torch.Generator().manual_seed(0)
    )
    # The same numbers once more: first the coin, then the boxes, then the flips.
    again = torch.Generator().manual_seed(0)
    torch.rand((), generator=again)
    boxes = torch.stack(resampling._random_boxes(40, 9, 13, (0.3, 1.0), again)).long()
    flips = torch.rand(40, generator=again) < 0.5
    found = sampled(given, drawn["crop_rows"], drawn["crop_columns"])
    for index in range(40):
        top, left, height, width = boxes[:, index].tolist()
        crop = given[index : index + 1, :, top : top + height, left : left + width]
        expected = interpolate(crop, (9, 13), mode="bilinear", align_corners=False)
        expected = expected.flip(3) if flips[index] else expected
        torch.testing.assert_close(found[index], expected[0], rtol=1e-4, atol=1e-5)
    assert len({tuple(box) for box in boxes.T.tolist()}) > 20
    assert 5 < int(flips.sum()) < 35


def test_crops_lie_inside_and_have_the_area_and_the_aspect_asked_for() -> None:
    generator = torch.Generator().manual_seed(0)
    tops, lefts, heights, widths = resampling._random_boxes(3000, 64, 80, (0.5, 1.0), generator)
    assert bool((tops >= 0).all() and (tops + heights <= 64).all())
    assert bool((lefts >= 0).all() and (lefts + widths <= 80).all())
    share = heights * widths / (64 * 80)
    assert 0.48 < share.min().item() < 0.52
    assert share.max().item() > 0.95
    aspect = widths / heights
    assert 0.72 < aspect.min().item() < 0.78
    assert 1.3 < aspect.max().item() < 1.38


def test_a_crop_that_never_fits_is_clipped_to_the_image() -> None:
    tall = resampling._random_boxes(50, 40, 4, (1.0, 1.0), torch.Generator().manual_seed(0))
    assert bool((tall[3] <= 4).all() and (tall[2] <= 40).all())


def test_one_coin_decides_for_the_whole_batch() -> None:
    given = images(7)
    look = LocalReinforcement((2, 9, 13), probability=0.5)
    generator = torch.Generator().manual_seed(3)
    untouched = 0
    for step in range(60):
        seen = look.augment(given, look.draw(step, generator, 7))
        same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(seen, given, strict=True)]
        untouched += all(same)
        assert all(same) or sum(same) <= 2
    assert 15 < untouched < 45


def test_a_pasted_box_holds_the_whole_other_image_made_smaller() -> None:
    given, other = images(20), images(20).flip(0)
    generator = torch.Generator().manual_seed(5)
    drawn = draw_pasted_boxes(20, 9, 13, areas=(0.2, 0.6), generator=generator)
    small = sampled(other, drawn["paste_rows"], drawn["paste_columns"])
    mixed = torch.where(drawn["paste_mask"] > 0, small, given)
    boxes = resampling._random_boxes(20, 9, 13, (0.2, 0.6), torch.Generator().manual_seed(5))
    for index in range(20):
        top, left, height, width = (int(v[index]) for v in boxes)
        expected = given[index].clone()
        expected[:, top : top + height, left : left + width] = interpolate(
            other[index : index + 1], (height, width), mode="bilinear", align_corners=False
        )[0]
        torch.testing.assert_close(mixed[index], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_roll_is_torchs(flip: float) -> None:
    given = images(3)
    for seed in range(5):
        drawn = draw_roll(9, 13, most=4, flip=flip, generator=torch.Generator().manual_seed(seed))
        shift = torch.randint(-4, 5, (2,), generator=torch.Generator().manual_seed(seed)).tolist()
        expected = given.roll(shift, (2, 3))
        expected = expected.flip(3) if flip else expected
        assert torch.equal(rolled(given, drawn["roll_rows"], drawn["roll_columns"]), expected)


def positions(count: int, number: int, size: int, seed: int) -> torch.Tensor:
    """In no order, some of them twice, both borders among them."""
    drawn = torch.rand(count, number, generator=torch.Generator().manual_seed(seed)) * (size - 1)
    drawn[0, 0], drawn[1, 1], drawn[2, :2] = 0.0, size - 1.0, 2.0
    return drawn.double()


@pytest.mark.parametrize("way", [resampling._sampled_by_pairs, resampling._sampled_by_products])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradient_are_those_of_weighted_sums(way: Any, layout: Any) -> None:
    given = torch.randn(4, 3, 7, 9, generator=torch.Generator().manual_seed(1)).double()
    given = given.contiguous(memory_format=layout).requires_grad_()
    rows, columns = positions(4, 5, 7, seed=2), positions(4, 11, 9, seed=3)
    found = way(given, rows, columns)
    slope = torch.randn(found.shape, generator=torch.Generator().manual_seed(4)).double()
    (gradient,) = torch.autograd.grad(found, given, slope)

    expected, expected_gradient = torch.zeros(4, 3, 5, 11), torch.zeros(4, 3, 7, 9)
    expected, expected_gradient = expected.double(), expected_gradient.double()
    for image, i, j in itertools.product(range(4), range(5), range(11)):
        y, x = rows[image, i].item(), columns[image, j].item()
        for h, w in itertools.product(range(7), range(9)):
            weight = max(0.0, 1 - abs(y - h)) * max(0.0, 1 - abs(x - w))
            expected[image, :, i, j] += weight * given[image, :, h, w].detach()
            expected_gradient[image, :, h, w] += weight * slope[image, :, i, j]
    torch.testing.assert_close(found.detach(), expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_samples_on_a_cpu_lie_as_networks_like_them() -> None:
    found = sampled(images(5), positions(5, 6, 9, seed=5), positions(5, 4, 13, seed=6))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_images_of_one_row_and_one_column_can_be_sampled() -> None:
    given = torch.tensor([[[[2.0]]], [[[-3.0]]]])
    found = sampled(given, torch.zeros(2, 4), torch.zeros(2, 3))
    assert torch.equal(found, given.expand(2, 1, 4, 3))


def test_sampling_compiles_in_one_piece() -> None:
    given = images(5).requires_grad_()
    rows, columns = positions(5, 6, 9, seed=5).float(), positions(5, 4, 13, seed=6).float()
    whole = torch.compile(sampled, fullgraph=True, backend="aot_eager")
    found = whole(given, rows, columns)
    expected = sampled(given, rows, columns)
    torch.testing.assert_close(found, expected)
    slope = torch.arange(expected.numel()).view(expected.shape) / expected.numel()
    torch.testing.assert_close(
        torch.autograd.grad(found, given, slope), torch.autograd.grad(expected, given, slope)
    )
