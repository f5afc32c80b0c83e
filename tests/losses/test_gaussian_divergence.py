"""The divergence of Gaussians against torch's own, the blur against scipy-free plain sums."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from emptyset.losses.blur_distance import blur_distance
from emptyset.losses.gaussian_divergence import gaussian_divergence
from emptyset.losses.layer_statistics import layer_statistics


def test_it_is_torchs_kl_divergence_of_the_stored_from_the_found() -> None:
    generator = torch.Generator().manual_seed(0)
    layers, expected = [], 0.0
    for channels in (3, 2):
        x = 2 * torch.randn(4, channels, 5, 3, generator=generator, dtype=torch.double)
        mean = torch.randn(channels, generator=generator, dtype=torch.double)
        var = torch.rand(channels, generator=generator, dtype=torch.double) + 0.1
        layers.append(layer_statistics(x, mean, var))
        found = Normal(x.mean((0, 2, 3)), x.std((0, 2, 3), correction=0))
        expected += kl_divergence(Normal(mean, var.sqrt()), found).sum().item() / 2
    assert gaussian_divergence(layers).item() == pytest.approx(expected, rel=1e-9)


def test_a_channel_that_is_always_zero_gives_no_infinity() -> None:
    x = torch.zeros(2, 1, 3, 3, requires_grad=True)
    loss = gaussian_divergence([layer_statistics(x, torch.zeros(1), torch.zeros(1))])
    (gradient,) = torch.autograd.grad(loss, [x])
    assert loss.item() == 0.0
    assert bool(torch.isfinite(gradient).all())


def test_the_blur_is_a_gaussian_sum_with_repeated_borders() -> None:
    image = torch.randn(1, 1, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    x, spread, reach = image[0, 0].tolist(), 0.6, 2
    weights = {k: math.exp(-k * k / (2 * spread**2)) for k in range(-reach, reach + 1)}
    total = sum(weights.values())
    expected = 0.0
    for i in range(4):
        for j in range(5):
            blurred = sum(
                weights[a] * weights[b] / total**2 * x[min(max(i + a, 0), 3)][min(max(j + b, 0), 4)]
                for a in weights
                for b in weights
            )
            expected += (x[i][j] - blurred) ** 2 / 20
    assert blur_distance(image, spread=spread).item() == pytest.approx(expected, rel=1e-9)
    assert blur_distance(torch.full((2, 3, 6, 7), 0.5)).item() == pytest.approx(0.0, abs=1e-12)
