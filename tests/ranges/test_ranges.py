"""Ranges: what each estimator promises, against plain numbers."""

import itertools
from typing import Any

import pytest
import torch

from emptyset.errors import NotCalibratedError
from emptyset.ranges.lp_norm import LpNorm, LpNormConfig
from emptyset.ranges.lp_search import lp_search
from emptyset.ranges.min_max import MinMax, MinMaxConfig
from emptyset.ranges.moving_average import MovingAverage, MovingAverageConfig
from emptyset.ranges.percentile import Percentile, PercentileConfig
from emptyset.registry import ranges


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def estimator(name: str, **grid: Any) -> Any:
    entry = ranges.get(name)
    settings = {"axis": None, "quant_min": 0, "quant_max": 15, "symmetric": False} | grid
    return entry.make(entry.config()).estimator(**settings)


@pytest.mark.parametrize("name", ranges.names())
class TestEveryRange:
    def test_a_constant_stream_reports_the_constant_at_every_step(self, name: str) -> None:
        estimate = estimator(name, quant_max=255)
        for _ in range(25):
            # The grid holds both ends and zero exactly, so that no search has a reason to shrink.
            estimate.update(torch.tensor([-51.0, 204.0]))
            low, high = estimate.low_high()
            assert (low.item(), high.item()) == pytest.approx((-51.0, 204.0), rel=1e-3)

    def test_goes_on_from_its_state_as_if_never_stopped(self, name: str) -> None:
        for axis in (None, 1):
            straight, first = estimator(name, axis=axis), estimator(name, axis=axis)
            parts = [seeded(5, 3, 7, seed=s) * (s + 1) for s in range(4)]
            for part in parts[:2]:
                straight.update(part)
                first.update(part)
            kept = {key: value.clone() for key, value in first.state().items()}
            first.update(parts[3] * 100)
            second = estimator(name, axis=axis)
            second.load_state(kept)
            for part in parts[2:]:
                straight.update(part)
                second.update(part)
            for a, b in zip(straight.low_high(), second.low_high(), strict=True):
                assert torch.equal(a, b)

    def test_a_channel_axis_gives_what_each_channel_alone_gives(self, name: str) -> None:
        x = seeded(4, 3, 6) * torch.tensor([1.0, 5.0, 0.2]).view(1, 3, 1)
        together = estimator(name, axis=1)
        together.update(x)
        low, high = together.low_high()
        assert low.shape == high.shape == (3,)
        for channel in range(3):
            alone = estimator(name, axis=0)
            alone.update(x[:, channel : channel + 1].transpose(0, 1))
            assert low[channel] == alone.low_high()[0][0]
            assert high[channel] == alone.low_high()[1][0]

    def test_zero_is_inside_and_symmetric_ranges_are_mirrored(self, name: str) -> None:
        above = estimator(name)
        above.update(seeded(50).abs() + 3.0)
        assert above.low_high()[0] == 0.0
        mirrored = estimator(name, quant_min=-7, quant_max=7, symmetric=True)
        mirrored.update(seeded(50) - 2.0)
        low, high = mirrored.low_high()
        assert low == -high
        assert high > 0

    def test_refuses_to_be_read_before_values_came(self, name: str) -> None:
        with pytest.raises(NotCalibratedError, match="no values yet"):
            estimator(name).low_high()
        with pytest.raises(NotCalibratedError, match=r"shape \(0, 3\)"):
            estimator(name).update(torch.zeros(0, 3))

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_refuses_values_that_are_not_finite(self, name: str, bad: float) -> None:
        estimate = estimator(name)

        def read() -> None:
            estimate.update(torch.tensor([1.0, bad, 2.0]))
            estimate.low_high()

        with pytest.raises(NotCalibratedError, match="NaN or infinity"):
            read()


def test_min_max_is_the_smallest_and_largest_of_all_batches() -> None:
    estimate = MinMax(MinMaxConfig()).estimator(
        axis=None, quant_min=0, quant_max=255, symmetric=False
    )
    for values in ([-1.0, 2.0], [-3.0, 0.5], [1.0, 7.0], [-2.0, 4.0]):
        estimate.update(torch.tensor(values))
    assert [v.item() for v in estimate.low_high()] == [-3.0, 7.0]


def test_moving_average_is_the_weighted_mean_of_the_batches_ends() -> None:
    estimate = MovingAverage(MovingAverageConfig(decay=0.8)).estimator(
        axis=None, quant_min=0, quant_max=255, symmetric=False
    )
    tops = [1.0, 4.0, 2.0]
    for top in tops:
        estimate.update(torch.tensor([-top / 2, top]))
    weights = [0.2 * 0.8**age for age in (2, 1, 0)]
    expected = sum(w * t for w, t in zip(weights, tops, strict=True)) / sum(weights)
    assert estimate.low_high()[1].item() == pytest.approx(expected)
    assert estimate.low_high()[0].item() == pytest.approx(-expected / 2)


def test_the_legacy_average_compounds_as_the_released_code_does() -> None:
    estimate = MovingAverage(MovingAverageConfig(legacy_ema=True)).estimator(
        axis=None, quant_min=0, quant_max=255, symmetric=False
    )
    stored = 0.0
    for step in range(1, 22):
        estimate.update(torch.tensor([0.0, 1.0]))
        stored = (0.9 * stored + 0.1 * 1.0) / (1 - 0.9**step)
        assert estimate.low_high()[1].item() == pytest.approx(stored, rel=1e-5)
    # The peak that the literature survey found.
    assert round(stored) == 3945


def test_a_percentile_lies_within_one_bin_of_the_sorted_value() -> None:
    config = PercentileConfig(percentile=97.0, bins=512)
    estimate = Percentile(config).estimator(axis=None, quant_min=0, quant_max=255, symmetric=False)
    parts = [seeded(1000, seed=1), seeded(700, seed=2) * 3, seeded(300, seed=3) - 4]
    for part in parts:
        estimate.update(part)
    everything = torch.cat(parts)
    # Bins may have doubled twice beyond the final range.
    bin_width = (everything.max() - everything.min()).item() / 512 * 2
    low, high = (v.item() for v in estimate.low_high())
    assert low == pytest.approx(everything.quantile(0.03).item(), abs=bin_width)
    assert high == pytest.approx(everything.quantile(0.97).item(), abs=bin_width)


def quantized_by_torch(x: torch.Tensor, low: float, high: float, quant_max: int) -> torch.Tensor:
    scale = (torch.tensor(high) - torch.tensor(low)) / quant_max
    zero_point = int((-(torch.tensor(low) / scale).round()).clamp(0, quant_max))
    return torch.fake_quantize_per_tensor_affine(x, scale.item(), zero_point, 0, quant_max)


@pytest.mark.parametrize(("bits", "shift"), [(4, 0.7), (3, -0.2), (2, 10.0)])
def test_lp_search_finds_the_candidate_that_torchs_own_rounding_finds(
    bits: int, shift: float
) -> None:
    x, top = seeded(997) + shift, 2**bits - 1
    errors = {}
    for k in range(20, 0, -1):
        low, high = min(x.min().item(), 0.0) * k / 20, max(x.max().item(), 0.0) * k / 20
        error = (quantized_by_torch(x, low, high, top) - x).abs().double().pow(2.4).mean()
        errors[(low, high)] = error.item()
    best = min(errors, key=lambda ends: errors[ends])
    found = lp_search(x, axis=None, quant_min=0, quant_max=top, symmetric=False, candidates=20)
    assert [v.item() for v in found] == pytest.approx(best, rel=1e-6)


def test_lp_search_per_channel_matches_torchs_per_channel_rounding() -> None:
    weights = seeded(3, 5, 4) * torch.tensor([1.0, 0.1, 7.0]).view(3, 1, 1)
    low, high = lp_search(weights, axis=0, quant_min=-7, quant_max=7, symmetric=True)
    assert torch.equal(low, -high)
    top = weights.abs().amax(dim=(1, 2))
    zero = torch.zeros(3, dtype=torch.int32)
    errors = []
    for k in range(100, 0, -1):
        scale = top * (k / 100) * 2 / 14
        out = torch.fake_quantize_per_channel_affine(weights, scale, zero, 0, -7, 7)
        errors.append((out - weights).abs().double().pow(2.4).mean(dim=(1, 2)))
    best = torch.stack(errors).argmin(dim=0)
    torch.testing.assert_close(high, top * (100 - best) / 100)


@pytest.mark.parametrize("size", [1, 3, 1 << 18])
def test_lp_search_does_not_depend_on_how_the_work_is_cut(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    x = seeded(6, 11, 5)
    expected = lp_search(x, axis=1, quant_min=0, quant_max=7, symmetric=False, candidates=9)
    monkeypatch.setattr("emptyset.ranges.lp_search._ELEMENTS", size)
    found = lp_search(x, axis=1, quant_min=0, quant_max=7, symmetric=False, candidates=9)
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)


def test_lp_search_of_zeros_is_zero_and_of_other_channels_unharmed() -> None:
    x = torch.stack([torch.zeros(8), seeded(8)])
    low, high = lp_search(x, axis=0, quant_min=0, quant_max=15, symmetric=False)
    assert low[0] == high[0] == 0.0
    assert high[1] > 0


def mean_error(x: torch.Tensor, low: float, high: float, quant_max: int) -> float:
    out = quantized_by_torch(x, low, high, quant_max)
    return float((out - x).abs().double().pow(2.4).mean())


def test_activations_are_searched_as_well_as_by_trying_everything() -> None:
    x = torch.cat([seeded(3000) * 0.3, torch.tensor([-9.0, 4.0])])
    estimate = LpNorm(LpNormConfig()).estimator(
        axis=None, quant_min=0, quant_max=7, symmetric=False
    )
    estimate.update(x)
    low, high = (v.item() for v in estimate.low_high())
    ends = itertools.product(range(1, 46), range(1, 41))
    best = min(mean_error(x, -0.2 * a, 0.1 * b, 7) for a, b in ends)
    assert mean_error(x, low, high, 7) <= 1.03 * best
    joint = LpNorm(LpNormConfig(independent_ends=False)).estimator(
        axis=None, quant_min=0, quant_max=7, symmetric=False
    )
    joint.update(x)
    joint_low, joint_high = (v.item() for v in joint.low_high())
    assert mean_error(x, low, high, 7) < mean_error(x, joint_low, joint_high, 7)


def test_lp_norm_is_never_worse_than_min_max() -> None:
    for seed in range(5):
        x = seeded(400, seed=seed).relu() if seed % 2 else seeded(400, seed=seed)
        estimate = estimator("lp_norm", quant_max=3)
        estimate.update(x)
        low, high = (v.item() for v in estimate.low_high())
        plain = mean_error(x, x.min().item(), x.max().item(), 3)
        assert mean_error(x, low, high, 3) <= plain * (1 + 1e-6)


def test_lp_norm_of_channels_spans_every_update() -> None:
    estimate = estimator("lp_norm", axis=0, quant_max=255)
    # Whole numbers, and ends 255 apart: without any error only where nothing is cut off.
    for rows in ([[-51.0, 204.0, 7.0], [-102.0, 153.0, 9.0]], [[1.0, 2.0], [3.0, -4.0]]):
        estimate.update(torch.tensor(rows))
    low, high = estimate.low_high()
    assert low.tolist() == pytest.approx([-51.0, -102.0], rel=1e-3)
    assert high.tolist() == pytest.approx([204.0, 153.0], rel=1e-3)


def test_lp_norm_shrinks_both_ends_of_a_channel_alike() -> None:
    estimate = estimator("lp_norm", axis=0, quant_max=7)
    ends = torch.tensor([[-9.0, 2.0], [-3.0, 8.0]])
    estimate.update(ends)
    estimate.update(seeded(2, 500) * 0.3)
    low, high = estimate.low_high()
    assert (high < ends[:, 1]).all()
    assert (low / high).tolist() == pytest.approx([-9 / 2, -3 / 8], rel=1e-4)


@pytest.mark.parametrize(
    ("config", "setting"),
    [
        (MovingAverageConfig, {"decay": 1.0}),
        (PercentileConfig, {"percentile": 50.0}),
        (PercentileConfig, {"bins": 1}),
        (LpNormConfig, {"exponent": 0.0}),
        (LpNormConfig, {"candidates": 0}),
    ],
)
def test_settings_out_of_range_are_refused(config: Any, setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        config(**setting)
