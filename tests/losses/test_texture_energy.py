"""Laws' texture energies against loops over pixels, and the loss on how they are spread."""

import numpy as np
import pytest
import torch

from emptyset.losses.texture_energy import ENERGIES, texture_energies, texture_energy_loss

LAWS = {
    "L": [1, 4, 6, 4, 1],
    "E": [-1, -2, 0, 2, 1],
    "S": [-1, 0, 2, 0, -1],
    "W": [-1, 2, 0, -2, 1],
    "R": [1, -4, 6, -4, 1],
}
RANDOM = torch.Generator().manual_seed(0)
COLOUR = torch.randn(2, 3, 7, 9, generator=RANDOM, dtype=torch.double)


def plain_energies(image_CHW: np.ndarray) -> list[float]:
    """Pixel by pixel, filter by filter."""
    weights = [0.299, 0.587, 0.114] if len(image_CHW) == 3 else [1 / len(image_CHW)] * 9
    grey = sum(w * plane for w, plane in zip(weights, image_CHW, strict=False))
    wide = np.pad(grey, 2, mode="edge")
    height, width = grey.shape
    one: dict[str, float] = {}
    for first, rows in LAWS.items():
        for second, columns in LAWS.items():
            total = 0.0
            for y in range(height):
                for x in range(width):
                    window = wide[y : y + 5, x : x + 5]
                    total += abs(float(np.asarray(rows) @ window @ np.asarray(columns)))
            one[first + second] = total / (height * width)
    names = list(LAWS)
    found = [
        (one[first + second] + one[second + first]) / 2
        for position, first in enumerate(names)
        for second in names[position:]
        if first + second != "LL"
    ]
    return [value / sum(found) for value in found]


def test_energies_are_shares_of_the_mean_responses_of_laws_filters() -> None:
    found = texture_energies(COLOUR)
    assert found.shape == (2, ENERGIES)
    for image, row in zip(COLOUR.numpy(), found.tolist(), strict=True):
        assert row == pytest.approx(plain_energies(image), rel=1e-9)


def test_grey_images_and_other_channel_counts_are_averaged() -> None:
    grey = COLOUR[:1, :2]
    assert texture_energies(grey)[0].tolist() == pytest.approx(plain_energies(grey[0].numpy()))


def test_neither_contrast_nor_brightness_nor_turning_the_image_changes_them() -> None:
    expected = texture_energies(COLOUR)
    torch.testing.assert_close(texture_energies(3.0 * COLOUR + 5.0), expected)
    torch.testing.assert_close(texture_energies(COLOUR.transpose(2, 3)), expected)


def test_an_image_of_one_value_has_none_and_a_finite_gradient() -> None:
    flat = torch.full((1, 3, 6, 8), 0.5).requires_grad_()
    assert texture_energies(flat).sum().item() == 0.0
    loss = texture_energy_loss(flat, highest=0.3, lowest=0.015, dominant=9)
    assert loss.item() == pytest.approx(9 * 0.015)
    assert bool(torch.isfinite(torch.autograd.grad(loss, [flat])[0]).all())


def test_the_loss_counts_what_stands_out_and_what_is_missing() -> None:
    rows = [sorted(plain_energies(image), reverse=True) for image in COLOUR.numpy()]
    for highest, lowest, dominant in ((0.1, 0.05, 9), (0.3, 0.015, 14), (0.2, 0.0, 1)):
        expected = 0.0
        for row in rows:
            expected += max(row[0] - highest, 0.0)
            expected += sum(max(lowest - value, 0.0) for value in row[:dominant])
        found = texture_energy_loss(COLOUR, highest=highest, lowest=lowest, dominant=dominant)
        assert float(found) == pytest.approx(expected / 2, rel=1e-9, abs=1e-12)


def test_following_its_gradient_spreads_the_energies() -> None:
    # A slope has a single texture: what plainly made images are like.
    image = torch.linspace(-1, 1, 12).repeat(1, 3, 10, 1)
    image = (image + 0.01 * torch.randn(image.shape, generator=RANDOM)).requires_grad_()
    before = texture_energies(image).max().item()
    for _ in range(40):
        loss = texture_energy_loss(image, highest=0.3, lowest=0.015, dominant=9)
        (slope,) = torch.autograd.grad(loss, [image])
        with torch.no_grad():
            image -= 0.02 * slope.sign()
    assert before > 0.5
    assert texture_energies(image).max().item() < 0.4
