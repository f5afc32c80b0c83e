"""Values that no 8-bit image can have are counted, and told where there are many."""

import torch

from emptyset.images.beyond_pixels import BeyondPixels, beyond_pixels
from emptyset.images.input_spec import InputSpec

SPEC = InputSpec((2, 5, 4), mean=(0.4, 0.25), std=(0.2, 0.5))


def images(*pixels: float) -> torch.Tensor:
    """One image per pair of pixels, one of each channel, everywhere the same."""
    values = torch.tensor(pixels).view(-1, 2, 1, 1).expand(-1, 2, 5, 4)
    return torch.stack([(values[:, c] - SPEC.mean[c]) / SPEC.std[c] for c in range(2)], 1)


def test_each_channel_has_its_own_black_and_white() -> None:
    # Of six channels of 20 pixels, two lie beyond: -0.1 of the first, 1.2 of the last.
    seen = beyond_pixels([images(0.0, 1.0, -0.1, 0.5), images(0.7, 1.2)], SPEC)
    assert seen.share() == 2 / 6
    assert "33%" in str(seen.warning())


def test_what_rounds_to_black_or_white_does_not_count() -> None:
    seen = BeyondPixels(SPEC)
    seen.look(images(-0.4 / 255, 1 + 0.4 / 255, 0.0, 1.0))
    assert seen.share() == 0.0
    seen.look(images(-0.6 / 255, 1 + 0.6 / 255))
    assert seen.share() == 2 / 6


def test_a_share_that_hardly_matters_is_not_told() -> None:
    seen = BeyondPixels(SPEC)
    inside = images(0.5, 0.5).repeat(5, 1, 1, 1)
    inside[0, 0, 0, 0] = 9.0
    seen.look(inside)
    assert 0 < seen.share() == 1 / 200
    assert seen.warning() is None


def test_nothing_seen_is_nothing_told() -> None:
    assert BeyondPixels(SPEC).warning() is None
