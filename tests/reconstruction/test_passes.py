"""Passes over all images: the distance by plain numbers, whatever the parts."""

import pytest
import torch

from emptyset.errors import CollapseError
from emptyset.reconstruction.caches import CacheRoom, Rows
from emptyset.reconstruction.passes import distance, forward, require_finite

CPU = torch.device("cpu")


def rows_of(values: torch.Tensor) -> Rows:
    rows = CacheRoom(1 << 20, half=False, device=CPU).rows(tuple(values.shape))
    rows.write(0, values)
    return rows


@pytest.mark.parametrize(("shape", "axis"), [((7, 3, 4, 5), 1), ((7, 6, 3), -1), ((7, 5), 1)])
@pytest.mark.parametrize("size", [2, 7, 32])
def test_distance_sums_channels_and_averages_the_rest(
    shape: tuple[int, ...], axis: int, size: int
) -> None:
    x, y = torch.randn(shape), torch.randn(shape)
    found = distance(lambda t: 2 * t, rows_of(x), rows_of(y), size, axis=axis)
    squares = [
        (2 * a - b) ** 2 for a, b in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True)
    ]
    assert found == pytest.approx(sum(squares) / (x.numel() / shape[axis]), rel=1e-5)


def test_only_the_first_images_are_looked_at_with_a_limit() -> None:
    x, y = torch.randn(9, 4), torch.randn(9, 4)
    found = distance(lambda t: t, rows_of(x), rows_of(y), 2, axis=1, limit=5)
    assert found == pytest.approx((x - y)[:5].square().sum().item() / 5, rel=1e-5)


def test_a_pass_writes_every_image() -> None:
    x = torch.randn(9, 4)
    into = rows_of(torch.zeros(9, 4))
    forward(lambda t: t + 1, rows_of(x), into, 4)
    assert torch.equal(into.read(0, 9), x + 1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_by_name(bad: float) -> None:
    values = torch.zeros(9, 4)
    values[8, 3] = bad
    with pytest.raises(CollapseError, match=r"block 'layer1.0' holds NaN"):
        require_finite(rows_of(values), 4, "block 'layer1.0'")
