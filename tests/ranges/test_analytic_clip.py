"""ACIQ's clip: where the error's derivative is zero, found without the formula's derivative."""

import math

import pytest
import torch

from emptyset.errors import NotCalibratedError
from emptyset.ranges.analytic_clip import (
    AnalyticClip,
    AnalyticClipConfig,
    laplace_clip,
    laplace_error,
    normal_clip,
    normal_error,
)

# Published optima for 1 to 8 bits, to two decimals.
LAPLACE = [1.86, 2.83, 3.90, 5.03, 6.20, 7.41, 8.65, 9.90]
NORMAL = [1.24, 1.71, 2.15, 2.56, 2.94, 3.29, 3.62, 3.92]


def estimated(x: torch.Tensor, bits: int = 4, axis: int | None = None, **options: object):
    signed = options.pop("symmetric", False)
    top = 2 ** (bits - 1) - 1
    codes = (-top, top) if signed else (0, 2**bits - 1)
    estimator = AnalyticClip(AnalyticClipConfig(**options)).estimator(
        axis=axis, quant_min=codes[0], quant_max=codes[1], symmetric=signed
    )
    estimator.update(x)
    return estimator.low_high()


def test_the_clips_are_the_published_ones_before_rounding() -> None:
    for bits, (laplace, normal) in enumerate(zip(LAPLACE, NORMAL, strict=True), start=1):
        assert round(laplace_clip(bits), 2) == laplace
        assert round(normal_clip(bits), 2) == normal


@pytest.mark.parametrize("bits", [1, 3, 4.5, 8])
def test_no_other_clip_has_a_smaller_error(bits: float) -> None:
    scale = torch.tensor(0.7, dtype=torch.double)
    alphas = torch.linspace(0.01, 20, 200_001, dtype=torch.double) * scale
    for clip, error in ((laplace_clip, laplace_error), (normal_clip, normal_error)):
        best = alphas[error(alphas, scale, bits).argmin()].item()
        assert clip(bits) * 0.7 == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("kind", ["laplace", "normal"])
def test_the_formula_of_the_error_is_the_error_of_clipping_and_even_rounding(kind: str) -> None:
    density, formula = {
        "laplace": (lambda x: torch.exp(-x / 0.7) / 1.4, laplace_error),
        "normal": (
            lambda x: torch.exp(-((x / 0.7) ** 2) / 2) / (0.7 * math.sqrt(2 * math.pi)),
            normal_error,
        ),
    }[kind]
    alpha, bits = 1.9, 3
    x = torch.linspace(alpha, 40, 2_000_001, dtype=torch.double)
    clipped = 2 * torch.trapezoid((x - alpha) ** 2 * density(x), x).item()
    step = 2 * alpha / 2**bits
    scale = torch.tensor(0.7, dtype=torch.double)
    found = formula(torch.tensor(alpha, dtype=torch.double), scale, bits).item()
    # The published formula charges the rounding of the whole range to every value.
    assert found == pytest.approx(clipped + step**2 / 12, rel=1e-5)


def normal_values(count: int = 100_000, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def test_normal_values_are_clipped_around_their_mean() -> None:
    low, high = estimated(1.5 * normal_values() + 0.3, distribution="normal")
    assert low.item() == pytest.approx(0.3 - 1.5 * normal_clip(4), abs=0.03)
    assert high.item() == pytest.approx(0.3 + 1.5 * normal_clip(4), abs=0.03)


def test_values_behind_a_relu_are_half_a_variable_with_a_bit_more() -> None:
    low, high = estimated(normal_values().relu(), distribution="normal")
    assert low.item() == 0.0
    assert high.item() == pytest.approx(normal_clip(5), abs=0.03)
    flat = torch.distributions.Exponential(torch.tensor(1 / 0.7))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        values = torch.cat([flat.sample((100_000,)), torch.zeros(50_000)])
    assert estimated(values, distribution="laplace")[1].item() == pytest.approx(
        0.7 * laplace_clip(5), rel=0.02
    )


def test_a_symmetric_grid_is_mirrored_and_counts_its_own_codes() -> None:
    low, high = estimated(normal_values(), symmetric=True, distribution="normal")
    assert high.item() == -low.item()
    assert high.item() == pytest.approx(normal_clip(math.log2(15)), abs=0.03)


def test_auto_takes_the_distribution_whose_range_has_the_smaller_error() -> None:
    values = normal_values()
    assert estimated(values) == estimated(values, distribution="normal")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pointed = torch.distributions.Laplace(0.0, 1.0).sample((100_000,))
    assert estimated(pointed) == estimated(pointed, distribution="laplace")


def test_each_channel_has_a_range_of_its_own() -> None:
    rows = torch.stack([normal_values(seed=1), 3 * normal_values(seed=2), torch.zeros(100_000)])
    low, high = estimated(rows, axis=0)
    assert high[1].item() == pytest.approx(3 * high[0].item(), rel=0.03)
    assert (low[2].item(), high[2].item()) == (0.0, 0.0)


def test_the_range_never_exceeds_the_values() -> None:
    low, high = estimated(
        torch.rand(1000, generator=torch.Generator().manual_seed(0)) - 0.5, bits=8
    )
    assert low.item() >= -0.5
    assert high.item() <= 0.5


def test_a_constant_is_kept_with_zero() -> None:
    low, high = estimated(torch.full((3, 7), 2.5))
    assert (low.item(), high.item()) == (0.0, 2.5)


def test_a_stream_in_parts_gives_the_same_and_can_be_resumed() -> None:
    values = normal_values(4000)
    factory = AnalyticClip(AnalyticClipConfig())
    grid = {"axis": None, "quant_min": 0, "quant_max": 15, "symmetric": False}
    first, second = factory.estimator(**grid), factory.estimator(**grid)
    first.update(values[:1500])
    second.load_state(first.state())
    for estimator in (first, second):
        estimator.update(values[1500:])
    assert first.low_high() == second.low_high()


def test_settings_and_empty_streams_are_refused() -> None:
    with pytest.raises(ValueError, match="'distribution' must be one of auto, laplace, normal"):
        AnalyticClipConfig(distribution="cauchy")
    with pytest.raises(ValueError, match=r"at least 2\. Got 1"):
        AnalyticClipConfig(bins=1)
    with pytest.raises(NotCalibratedError, match="no values yet"):
        AnalyticClip(AnalyticClipConfig()).estimator(
            axis=None, quant_min=0, quant_max=15, symmetric=False
        ).low_high()
