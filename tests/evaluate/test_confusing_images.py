"""Confusing images are the least sure of each class, counted and with their thresholds."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from emptyset.errors import ImagesError
from emptyset.evaluate.confusing_images import confusing_images
from emptyset.images.image_set import ImageSet

# Logit of the first of three classes; the others have 0.
LOGITS = [2.0, 0.1, 0.0, 3.0, 0.2, 5.0, 0.4, 4.0, 1.0, 6.0, 7.0, 8.0]
LABELS = [0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2]
CONFIDENCE = [math.exp(z) / (math.exp(z) + 2) for z in LOGITS]


def images(labels: list[int] | None = LABELS) -> ImageSet:
    pixels = torch.tensor(LOGITS).view(-1, 1, 1, 1)
    return ImageSet(pixels, None if labels is None else torch.tensor(labels))


def predict(pixels: Tensor) -> Tensor:
    first = pixels[:, 0, 0, 0]
    return torch.stack([first, torch.zeros_like(first), torch.zeros_like(first)], dim=1)


def chosen(**settings: Any) -> Any:
    return confusing_images(predict, images(), seed=0, batch_size=5, **settings)


def test_the_least_sure_of_each_class_are_chosen_whatever_they_are() -> None:
    found = chosen(per_class=2, below=None)
    assert found.confusing == (1, 2, 4, 6, 9, 10)
    assert found.confidence == pytest.approx(CONFIDENCE, rel=1e-6)
    assert [c.images for c in found.classes] == [4, 5, 3]
    assert [c.chosen for c in found.classes] == [2, 2, 2]
    thresholds = [c.threshold for c in found.classes]
    assert thresholds == pytest.approx([CONFIDENCE[n] for n in (1, 6, 10)], rel=1e-6)
    assert found.short() == []


def test_below_a_limit_classes_that_lack_images_are_named() -> None:
    found = chosen(per_class=2, below=0.5)
    assert [n for n, c in enumerate(CONFIDENCE) if c < 0.5] == [1, 2, 4, 6]
    assert found.confusing == (1, 2, 4, 6)
    assert found.classes[2].chosen == 0
    assert found.classes[2].threshold is None
    assert found.short() == [2]
    assert chosen(per_class=1, below=0.5).confusing == (2, 4)
    assert chosen(per_class=None, below=0.75).confusing == (1, 2, 4, 6, 8)


def test_the_control_is_as_large_and_has_sure_images_only() -> None:
    draws = {
        confusing_images(predict, images(), seed=seed, per_class=1, below=0.5).unconfusing
        for seed in range(20)
    }
    assert all(len(set(draw)) == 2 for draw in draws)
    assert all(CONFIDENCE[n] >= 0.5 for draw in draws for n in draw)
    assert len(draws) > 5
    assert chosen(per_class=1).unconfusing == chosen(per_class=1).unconfusing


def test_the_record_says_that_it_is_not_data_free() -> None:
    record = chosen(per_class=2, below=0.5).to_json()
    assert "analysis only" in record["note"]
    assert record["short"] == [2]
    assert record["classes"][0]["chosen"] == 2


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ImagesError, match="no labels"):
        confusing_images(predict, images(None), seed=0)
    with pytest.raises(ImagesError, match="left for the control"):
        chosen(per_class=None, below=0.97)
    with pytest.raises(ValueError, match="every image is confusing"):
        chosen(per_class=None, below=None)
    with pytest.raises(ValueError, match="per_class must be at least 1"):
        chosen(per_class=0)
    with pytest.raises(ValueError, match="below in"):
        chosen(below=1.5)
