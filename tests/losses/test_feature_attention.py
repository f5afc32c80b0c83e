"""Feature attention compares which channels speak, not how loudly."""

import math

import pytest
import torch
from torch import Tensor

from emptyset.errors import ImagesError
from emptyset.losses.feature_attention import channel_attention, feature_attention_loss


def features(seed: int, channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, channels, 5, 4, generator=generator, dtype=torch.double)


def attention(image: list[list[list[float]]]) -> list[float]:
    loud = [sum(v * v for row in rows for v in row) / 20 for rows in image]
    length = math.sqrt(sum(v * v for v in loud))
    return [v / length for v in loud]


def test_it_is_the_formula_computed_with_plain_numbers() -> None:
    ours, theirs = [features(0, 3), features(1, 6)], [features(2, 3), features(3, 6)]
    expected = 0.0
    for a, b in zip(ours, theirs, strict=True):
        gaps = [
            (x - y) ** 2
            for image, other in zip(a.tolist(), b.tolist(), strict=True)
            for x, y in zip(attention(image), attention(other), strict=True)
        ]
        expected += sum(gaps) / len(gaps)
    assert feature_attention_loss(ours, theirs).item() == pytest.approx(expected, rel=1e-9)


def test_louder_images_have_the_same_attention() -> None:
    x = features(0, 3)
    louder = x * torch.tensor([2.0, 5.0], dtype=torch.double).view(2, 1, 1, 1)
    torch.testing.assert_close(channel_attention(louder), channel_attention(x))


def test_pooled_features_of_silence_are_zero() -> None:
    assert channel_attention(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2


def test_units_must_match() -> None:
    with pytest.raises(ImagesError, match="1 of the student and 2 of the teacher"):
        feature_attention_loss([features(0, 3)], [features(0, 3)] * 2)
    with pytest.raises(ImagesError):
        feature_attention_loss([], [])
