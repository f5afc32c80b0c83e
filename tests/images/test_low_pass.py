"""The low-pass filter against a discrete Fourier sum, and as a setting of methods."""

import cmath
import math

import pytest
import torch

from emptyset.images.low_pass import low_pass


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 3)])
def test_every_frequency_is_weakened_by_the_gaussian(height: int, width: int) -> None:
    x = torch.randn(
        1, 1, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.double
    )
    values, cutoff = x[0, 0].tolist(), 1.3

    def wave(u: int, v: int, i: int, j: int) -> complex:
        return cmath.exp(2j * math.pi * (u * i / height + v * j / width))

    expected = [[0j] * width for _ in range(height)]
    for u in range(height):
        for v in range(width):
            weight = sum(
                values[i][j] / wave(u, v, i, j) for i in range(height) for j in range(width)
            )
            near_u, near_v = min(u, height - u), min(v, width - v)
            weight *= math.exp(-(near_u**2 + near_v**2) / (2 * cutoff**2)) / (height * width)
            for i in range(height):
                for j in range(width):
                    expected[i][j] += weight * wave(u, v, i, j)
    found = low_pass(x, cutoff)[0, 0]
    for i in range(height):
        assert found[i].tolist() == pytest.approx([z.real for z in expected[i]], abs=1e-12)


def test_the_mean_stays_and_a_wide_filter_changes_nothing() -> None:
    images = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(low_pass(images, 0.5).mean((2, 3)), images.mean((2, 3)))
    torch.testing.assert_close(low_pass(images, 1e4), images)
    assert low_pass(images, 2.0).var() < 0.7 * images.var()
