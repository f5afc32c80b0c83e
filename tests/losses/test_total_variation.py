"""Total variation by loops over pixels."""

import math

import pytest
import torch

from emptyset.errors import ImagesError
from emptyset.losses.total_variation import total_variation, total_variation_per_image

IMAGES = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.double)


def norms(images: torch.Tensor) -> float:
    count, channels, height, width = images.shape
    total = 0.0
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        squares = 0.0
        for n in range(count):
            for c in range(channels):
                for y in range(height - dy):
                    for x in range(width):
                        if 0 <= x + dx < width:
                            gap = images[n, c, y + dy, x + dx] - images[n, c, y, x]
                            squares += gap.item() ** 2
        total += math.sqrt(squares)
    return total


def test_adds_the_norms_of_four_directions_over_the_batch() -> None:
    assert total_variation(IMAGES).item() == pytest.approx(norms(IMAGES), rel=1e-12)


def test_per_image_looks_at_each_image_alone() -> None:
    expected = [norms(IMAGES[n : n + 1]) for n in range(2)]
    assert total_variation_per_image(IMAGES).tolist() == pytest.approx(expected, rel=1e-12)


def test_a_flat_image_has_none_and_a_finite_gradient() -> None:
    flat = torch.full((2, 1, 3, 4), 5.0, requires_grad=True)
    loss = total_variation(flat)
    loss.backward()
    assert loss.item() == 0.0
    assert flat.grad is not None
    assert bool(torch.isfinite(flat.grad).all())


def test_refuses_images_without_neighbours() -> None:
    with pytest.raises(ImagesError, match="at least 2 × 2"):
        total_variation(torch.zeros(2, 3, 1, 5))
