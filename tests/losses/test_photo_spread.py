"""Spread of coarse structure, against SciPy's transform, image by image."""

import math

import numpy as np
import pytest
import torch
from scipy import fft

from emptyset.losses.photo_spread import photo_spread


def expected(images: np.ndarray) -> float:
    _, channels, height, width = images.shape
    strengths = fft.dctn(images, axes=(2, 3), norm="ortho").std(axis=0)
    shorter = min(height, width)
    frequencies = np.maximum(
        1,
        np.hypot(np.arange(height)[:, None] * shorter / height, np.arange(width) * shorter / width),
    )
    amplitudes = 1 / frequencies
    amplitudes /= np.sqrt((amplitudes**2).mean())
    found = []
    for c in range(channels):
        for k in range(min(8, height)):
            for m in range(min(8, width)):
                wanted = images[:, c].std() * amplitudes[k, m]
                found.append(math.log(strengths[c, k, m] / wanted) ** 2)
    return float(np.mean(found))


@pytest.mark.parametrize("shape", [(6, 2, 9, 12), (5, 3, 16, 16), (7, 1, 5, 4)])
def test_it_is_the_mean_over_the_coarse_waves(shape: tuple[int, ...]) -> None:
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    images = images * 3 + 0.5
    assert photo_spread(images).item() == pytest.approx(expected(images.numpy()), rel=1e-4)


def photographs(count: int) -> torch.Tensor:
    """Waves whose strengths fall as a photograph's do, independent of each other."""
    frequencies = np.maximum(1, np.hypot(np.arange(16)[:, None], np.arange(16)))
    drawn = np.random.default_rng(2).standard_normal((count, 2, 16, 16)) / frequencies
    return torch.from_numpy(fft.idctn(drawn, axes=(2, 3), norm="ortho"))


def test_photographs_have_none_whatever_their_units() -> None:
    many = photographs(4000)
    assert photo_spread(many).item() < 2e-3
    torch.testing.assert_close(photo_spread(many * 7 - 3), photo_spread(many), rtol=1e-3, atol=0)


def test_one_image_again_and_again_and_noise_have_much() -> None:
    once = photographs(1).expand(6, -1, -1, -1)
    noise = torch.randn(600, 2, 16, 16, generator=torch.Generator().manual_seed(3))
    assert photo_spread(once).item() > 5
    assert photo_spread(noise).item() > 0.3


def test_gradients_are_finite_even_where_nothing_differs() -> None:
    images = torch.zeros(3, 2, 5, 7, requires_grad=True)
    photo_spread(images).backward()
    assert images.grad is not None
    assert bool(torch.isfinite(images.grad).all())


def test_following_the_gradient_brings_images_nearer() -> None:
    images = photographs(20) * 0.1 + photographs(1)
    images = images.requires_grad_()
    optimizer = torch.optim.Adam([images], lr=0.05)
    before = photo_spread(images).item()
    for _ in range(30):
        optimizer.zero_grad()
        photo_spread(images).backward()
        optimizer.step()
    assert photo_spread(images).item() < before / 4
