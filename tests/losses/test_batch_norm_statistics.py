"""Statistics and losses against loops over plain numbers."""

import statistics as plain
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from emptyset.losses.batch_norm_statistics import (
    batch_statistics,
    deep_inversion_statistics,
    gdfq_statistics,
    genie_statistics,
    layered_statistics,
    zeroq_statistics,
)
from emptyset.losses.layer_statistics import LayerStatistics, input_statistics, layer_statistics

EPSILON = 1e-6
FORMS: list[Callable[[list[LayerStatistics]], Tensor]] = [
    zeroq_statistics,
    batch_statistics,
    gdfq_statistics,
    deep_inversion_statistics,
    genie_statistics,
]


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


# Two layers whose sizes all differ.
FEATURES = [double(2, 3, 5, 4), 3 * double(2, 7, 6, 8, seed=1) + 2]
MEANS = [double(3, seed=2), double(7, seed=3)]
VARS = [double(3, seed=4).square() + 0.1, double(7, seed=5).square() + 0.1]


def layers() -> list[LayerStatistics]:
    return [layer_statistics(*each) for each in zip(FEATURES, MEANS, VARS, strict=True)]


def channel(layer: int, c: int) -> list[float]:
    return FEATURES[layer][:, c].flatten().tolist()


def test_zeroq_is_the_sum_over_every_image_and_channel() -> None:
    expected = 0.0
    for features, means, variances in zip(FEATURES, MEANS, VARS, strict=True):
        for image in features:
            for values, mean, var in zip(image, means.tolist(), variances.tolist(), strict=True):
                pixels = values.flatten().tolist()
                spread = (plain.variance(pixels) + EPSILON) ** 0.5
                gap = (plain.fmean(pixels) - mean) ** 2
                gap += (spread - (var + EPSILON) ** 0.5) ** 2
                expected += gap / len(features)
    assert zeroq_statistics(layers()).item() == pytest.approx(expected, rel=1e-9)


def test_the_batch_form_takes_all_images_together() -> None:
    expected = 0.0
    for i in range(2):
        for c, (mean, var) in enumerate(zip(MEANS[i].tolist(), VARS[i].tolist(), strict=True)):
            spread = (plain.pvariance(channel(i, c)) + EPSILON) ** 0.5
            expected += (plain.fmean(channel(i, c)) - mean) ** 2
            expected += (spread - (var + EPSILON) ** 0.5) ** 2
    assert batch_statistics(layers()).item() == pytest.approx(expected, rel=1e-9)


def test_gdfq_averages_squared_gaps_of_mean_and_variance() -> None:
    expected = 0.0
    for i in range(2):
        gaps = [
            (plain.fmean(channel(i, c)) - MEANS[i][c].item()) ** 2
            + (plain.pvariance(channel(i, c)) - VARS[i][c].item()) ** 2
            for c in range(len(MEANS[i]))
        ]
        expected += plain.fmean(gaps) / 2
    assert gdfq_statistics(layers()).item() == pytest.approx(expected, rel=1e-9)


def test_the_layered_form_weighs_the_halves_apart() -> None:
    own = [gdfq_statistics([layer]).item() for layer in layers()]
    # Three layers, of which the middle one is deep.
    three = [layers()[0], layers()[1], layers()[0]]
    expected = (0.2 * own[0] + 1.1 * own[1] + 1.1 * own[0]) / 3
    found = layered_statistics(three, shallow=0.2, deep=1.1).item()
    assert found == pytest.approx(expected, rel=1e-12)
    assert layered_statistics(layers(), shallow=1.0, deep=1.0).item() == pytest.approx(
        gdfq_statistics(layers()).item(), rel=1e-12
    )


def test_deep_inversion_adds_norms_and_weights_the_first_layer() -> None:
    expected = 0.0
    for i, weight in enumerate((10.0, 1.0)):
        channels = range(len(MEANS[i]))
        for gaps in (
            [plain.fmean(channel(i, c)) - MEANS[i][c].item() for c in channels],
            [plain.pvariance(channel(i, c)) - VARS[i][c].item() for c in channels],
        ):
            expected += weight * sum(gap**2 for gap in gaps) ** 0.5
    actual = deep_inversion_statistics(layers(), first_multiplier=10.0)
    assert actual.item() == pytest.approx(expected, rel=1e-9)


def test_genie_takes_unbiased_standard_deviations_and_averages_channels() -> None:
    expected = 0.0
    for i in range(2):
        gaps = []
        for c in range(len(MEANS[i])):
            spread = (plain.variance(channel(i, c)) + EPSILON) ** 0.5
            stored = (VARS[i][c].item() + EPSILON) ** 0.5
            gaps.append(
                (plain.fmean(channel(i, c)) - MEANS[i][c].item()) ** 2 + (spread - stored) ** 2
            )
        expected += plain.fmean(gaps)
    assert genie_statistics(layers()).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_finite_differences(
    form: Callable[[list[LayerStatistics]], Tensor],
) -> None:
    def loss(x: Tensor) -> Tensor:
        return form([layer_statistics(x, MEANS[0], VARS[0])])

    assert torch.autograd.gradcheck(loss, FEATURES[0].clone().requires_grad_())


@pytest.mark.parametrize("form", FORMS)
def test_zero_where_the_images_cause_what_is_stored(
    form: Callable[[list[LayerStatistics]], Tensor],
) -> None:
    # One image, so that the statistics of an image and of the batch are the same.
    image = double(1, 3, 5, 4)
    unbiased = form in (zeroq_statistics, genie_statistics)
    var, mean = torch.var_mean(image, (0, 2, 3), correction=int(unbiased))
    assert form([layer_statistics(image, mean, var)]).item() == pytest.approx(0.0, abs=1e-12)


def test_a_large_mean_does_not_drown_a_small_spread_in_single_precision() -> None:
    features = (double(2, 3, 8, 9) * 1e-2 + 1000).float()
    mean = torch.full((3,), 1000.0)
    found = layer_statistics(features, mean, torch.ones(3)).batch_variance(correction=0)
    expected = features.double().var((0, 2, 3), correction=0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0)


def test_bfloat16_features_get_float32_statistics_and_bfloat16_gradients() -> None:
    features = FEATURES[0].bfloat16().requires_grad_()
    statistics = layer_statistics(features, MEANS[0].float(), VARS[0].float())
    assert statistics.shift.dtype == statistics.square.dtype == torch.float32
    expected = (features.detach().float() - MEANS[0].float().view(-1, 1, 1)).mean((2, 3))
    torch.testing.assert_close(statistics.shift, expected)
    zeroq_statistics([statistics]).backward()
    assert features.grad is not None
    assert features.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("cached", [1, 40, 1 << 20])
def test_statistics_do_not_depend_on_the_size_of_the_slices(
    monkeypatch: pytest.MonkeyPatch, cached: int
) -> None:
    monkeypatch.setattr("emptyset.losses.layer_statistics._CACHED", cached)
    x = FEATURES[0].clone().requires_grad_()
    loss = zeroq_statistics([layer_statistics(x, MEANS[0], VARS[0])])
    (gradient,) = torch.autograd.grad(loss, x)
    y = FEATURES[0].clone().requires_grad_()
    spread = (y.var((2, 3)) + EPSILON).sqrt() - (VARS[0] + EPSILON).sqrt()
    direct = ((y.mean((2, 3)) - MEANS[0]).square() + spread.square()).sum() / 2
    (expected,) = torch.autograd.grad(direct, y)
    torch.testing.assert_close(gradient, expected)


def test_the_input_term_compares_with_mean_zero_and_variance_one() -> None:
    images = FEATURES[1]
    found = input_statistics(images)
    torch.testing.assert_close(found.shift, images.mean((2, 3)))
    torch.testing.assert_close(found.image_variance(), images.var((2, 3)))
    assert found.stored_var.tolist() == [1.0] * 7
