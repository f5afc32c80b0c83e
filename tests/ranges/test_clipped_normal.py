"""Moments, reach and quantiles of clipped normal channels, against sampling and integration."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from emptyset.ranges.clipped_normal import ClippedNormal, joined

MEANS = torch.tensor([0.0, 0.7, -1.3, 5.0])
DEVIATIONS = torch.tensor([1.0, 0.4, 2.5, 0.8])


def integrated(mean: float, deviation: float, low: float, high: float) -> tuple[float, float]:
    """Oracle: mean and variance by the midpoint rule over the normal density."""
    steps = np.linspace(-9, 9, 400_001)
    middles = (steps[1:] + steps[:-1]) / 2
    weights = np.exp(-(middles**2) / 2) / math.sqrt(2 * math.pi) * (steps[1] - steps[0])
    values = np.clip(mean + deviation * middles, low, high)
    first = float((values * weights).sum())
    return first, float(((values - first) ** 2 * weights).sum())


@pytest.mark.parametrize(
    ("low", "high"), [(-math.inf, math.inf), (0.0, math.inf), (0.0, 6.0), (-1.0, 1.5)]
)
def test_moments_are_those_of_the_clipped_density(low: float, high: float) -> None:
    mean, variance = ClippedNormal.of(MEANS, DEVIATIONS).clipped(low, high).moments()
    for channel in range(len(MEANS)):
        expected = integrated(MEANS[channel].item(), DEVIATIONS[channel].item(), low, high)
        assert mean[channel].item() == pytest.approx(expected[0], abs=1e-6)
        assert variance[channel].item() == pytest.approx(expected[1], abs=1e-6)


def test_the_mean_behind_a_relu_is_the_published_formula() -> None:
    beta, gamma = 0.7, 0.4
    density = math.exp(-((beta / gamma) ** 2) / 2) / math.sqrt(2 * math.pi)
    share = (1 + math.erf(beta / gamma / math.sqrt(2))) / 2
    told = ClippedNormal.of(torch.tensor([beta]), torch.tensor([gamma])).clipped(0.0, math.inf)
    assert told.moments()[0].item() == pytest.approx(gamma * density + beta * share, rel=1e-6)


def test_a_dead_channel_is_the_constant_it_always_is() -> None:
    told = ClippedNormal.of(torch.tensor([2.0, -3.0, 9.0]), torch.zeros(3)).clipped(0.0, 6.0)
    mean, variance = told.moments()
    assert mean.tolist() == [2.0, 0.0, 6.0]
    assert variance.tolist() == [0.0, 0.0, 0.0]
    assert [end.tolist() for end in told.reach(6.0)] == [[2.0, 0.0, 6.0]] * 2


def test_reach_is_the_mean_and_so_many_deviations_cut_off_where_the_channel_is() -> None:
    low, high = ClippedNormal.of(MEANS, DEVIATIONS).clipped(0.0, 6.0).reach(3.0)
    assert low.tolist() == pytest.approx([0.0, 0.0, 0.0, 2.6])
    assert high.tolist() == pytest.approx([3.0, 1.9, 6.0, 6.0])


def test_scaling_by_a_negative_factor_turns_the_bounds_around() -> None:
    factor = torch.tensor([-2.0, 0.5, 0.0, 3.0])
    told = ClippedNormal.of(MEANS, DEVIATIONS).clipped(0.0, math.inf)
    mean, variance = told.scaled(factor, 1.0).moments()
    before = told.moments()
    torch.testing.assert_close(mean, before[0] * factor + 1)
    torch.testing.assert_close(variance, before[1] * factor.square())
    low, high = told.scaled(factor, 1.0).reach(4.0)
    assert (low[0].item(), high[0].item()) == pytest.approx((-7.0, 1.0))
    assert (low[2].item(), high[2].item()) == (1.0, 1.0)


def sample(told: ClippedNormal, generator: torch.Generator, count: int = 400_000) -> Tensor:
    noise = torch.randn(count, len(told), generator=generator, dtype=torch.double)
    return (told.mean + told.deviation * noise).clamp(told.low, told.high)


def test_sums_and_products_have_the_moments_of_independent_variables() -> None:
    generator = torch.Generator().manual_seed(0)
    one = ClippedNormal.of(MEANS, DEVIATIONS).clipped(0.0, math.inf)
    other = ClippedNormal.of(MEANS.flip(0), DEVIATIONS).clipped(-1.0, 2.0)
    x, y = sample(one, generator), sample(other, generator)
    for told, values in ((one.plus(other), x + y), (one.times(other), x * y)):
        mean, variance = told.moments()
        torch.testing.assert_close(mean, values.mean(0), atol=0.02, rtol=0.01)
        torch.testing.assert_close(variance, values.var(0), atol=0.02, rtol=0.03)
        low, high = told.reach(8.0)
        assert bool((low <= values.amin(0)).all())
        assert bool((high >= values.amax(0)).all())


def test_a_function_has_the_moments_of_its_values() -> None:
    generator = torch.Generator().manual_seed(1)
    plain = ClippedNormal.of(MEANS, DEVIATIONS)
    for function in (torch.nn.functional.silu, torch.sigmoid, lambda x: x.clamp(min=0.1 * x)):
        told, values = plain.through(function), function(sample(plain, generator))
        mean, variance = told.moments()
        torch.testing.assert_close(mean, values.mean(0), atol=0.01, rtol=0.01)
        torch.testing.assert_close(variance, values.var(0), atol=0.01, rtol=0.03)
        assert bool((told.reach(7.0)[1] >= values.amax(0) - 1e-6).all())


def test_a_leaky_relu_keeps_the_reach_of_both_sides() -> None:
    told = ClippedNormal.of(MEANS, DEVIATIONS).through(lambda x: torch.where(x > 0, x, 0.1 * x))
    low, high = told.reach(6.0)
    torch.testing.assert_close(high, (MEANS + 6 * DEVIATIONS).double())
    expected = (MEANS - 6 * DEVIATIONS).double()
    torch.testing.assert_close(low, torch.where(expected > 0, expected, 0.1 * expected))


def test_the_largest_of_several_is_what_sampling_says() -> None:
    generator = torch.Generator().manual_seed(2)
    told = ClippedNormal.of(MEANS, DEVIATIONS).clipped(0.0, math.inf)
    values = torch.stack([sample(told, generator) for _ in range(4)]).amax(0)
    mean, variance = told.largest_of(4).moments()
    torch.testing.assert_close(mean, values.mean(0), atol=0.01, rtol=0.01)
    torch.testing.assert_close(variance, values.var(0), atol=0.02, rtol=0.02)


def test_points_are_equally_likely() -> None:
    told = ClippedNormal.of(MEANS, DEVIATIONS).clipped(0.0, math.inf)
    points = told.points(2000)
    torch.testing.assert_close(points.mean(1), told.moments()[0], atol=2e-3, rtol=0)
    assert points.shape == (4, 2000)
    normal = torch.distributions.Normal(MEANS[1].double(), DEVIATIONS[1].double())
    shares = (torch.arange(2000, dtype=torch.double) + 0.5) / 2000
    torch.testing.assert_close(points[1], normal.icdf(shares).clamp(min=0.0))


def test_channels_are_taken_in_another_order_with_zeros_in_between() -> None:
    told = ClippedNormal.of(MEANS, DEVIATIONS).taken(torch.tensor([2, -1, 0, 2, 3]))
    mean, variance = told.moments()
    assert mean.tolist() == pytest.approx([-1.3, 0.0, 0.0, -1.3, 5.0])
    assert variance.tolist() == pytest.approx([6.25, 0.0, 1.0, 6.25, 0.64])
    assert [end[1].item() for end in told.reach(6.0)] == [0.0, 0.0]


def test_a_padded_channel_has_the_moments_of_values_and_zeros() -> None:
    generator = torch.Generator().manual_seed(3)
    plain = ClippedNormal.of(MEANS, DEVIATIONS)
    share = torch.tensor([1.0, 0.6, 0.6, 0.25])
    told = plain.taken(torch.arange(4), share)
    there = torch.rand(400_000, 4, generator=generator) < share
    values = torch.where(there, sample(plain, generator), 0.0)
    mean, variance = told.moments()
    torch.testing.assert_close(mean, values.mean(0), atol=0.02, rtol=0.02)
    torch.testing.assert_close(variance, values.var(0), atol=0.02, rtol=0.02)
    assert told.reach(6.0)[0][3].item() <= 0.0


def test_a_clip_that_changes_nothing_leaves_a_sum_as_it_is() -> None:
    half = ClippedNormal.of(MEANS, DEVIATIONS).clipped(0.0, math.inf)
    total = half.plus(half)
    torch.testing.assert_close(total.clipped(0.0, math.inf).moments()[0], total.moments()[0])
    assert bool((total.clipped(0.5, math.inf).moments()[0] > 0.5).all())


def test_joined_channels_stand_one_after_the_other() -> None:
    one = ClippedNormal.of(MEANS, DEVIATIONS)
    two = one.clipped(0.0, 1.0).averaged()
    mean, variance = joined([one, two]).moments()
    torch.testing.assert_close(mean, torch.cat([one.moments()[0], two.moments()[0]]))
    torch.testing.assert_close(variance, torch.cat([one.moments()[1], two.moments()[1]]))
