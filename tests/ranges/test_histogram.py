"""The growing histogram loses nothing."""

import torch

from emptyset.ranges.histogram import Histogram


def test_no_value_is_lost_while_the_bins_grow() -> None:
    generator = torch.Generator().manual_seed(0)
    histogram, total, seen = Histogram(16), 0.0, 0
    for scale in (0.1, 5.0, 0.01, 300.0, 70.0):
        x = scale * torch.randn(3, 41, generator=generator)
        histogram.update(x)
        total, seen = total + x.double().sum(dim=1), seen + 41
        values, counts = histogram.points()
        assert counts.sum(dim=1).tolist() == [seen] * 3
        torch.testing.assert_close((values * counts).sum(dim=1), total, rtol=1e-6, atol=1e-6)


def test_bins_after_growing_are_those_of_a_direct_count() -> None:
    generator = torch.Generator().manual_seed(1)
    parts = [scale * torch.rand(1, 100, generator=generator) - 1 for scale in (2.0, 9.0)]
    histogram = Histogram(32)
    for part in parts:
        histogram.update(part)
    state = histogram.state()
    start, width = state["start"].item(), state["width"].item()
    counted = [0] * 32
    for value in torch.cat(parts, dim=1)[0].tolist():
        counted[min(31, int((value - start) / width))] += 1
    # A value on an edge may fall to either side in single precision.
    moved = sum(abs(a - b) for a, b in zip(counted, state["counts"][0].tolist(), strict=True))
    assert moved <= 2


def test_a_constant_stream_that_starts_to_vary_is_followed() -> None:
    histogram = Histogram(64)
    histogram.update(torch.full((1, 5), 3.0))
    histogram.update(torch.tensor([[3.0, 50.0, -7.0]]))
    values, counts = histogram.points()
    assert counts.sum().item() == 8
    assert [v.item() for v in histogram.ends()] == [-7.0, 50.0]
    assert values[counts > 0].min() < -5
    assert histogram.quantile(1.0).item() == 50.0
