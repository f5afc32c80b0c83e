"""All measures together are the single ones, and two sets are measured alike."""

import pytest
import torch
from torch import nn

from emptyset.evaluate.batch_norm_distance import batch_norm_distance
from emptyset.evaluate.diversity import diversity
from emptyset.evaluate.image_quality import compared_quality, image_quality
from emptyset.images.image_set import ImageSet
from emptyset.teachers.teacher import InputSpec, Teacher


def teacher(norm: bool = True) -> Teacher:
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.ReLU()]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    spec = InputSpec((2, 6, 7), (0.5, 0.4), (0.25, 0.3))
    return Teacher("test:net", module.requires_grad_(False).eval(), spec)


def images(count: int, seed: int) -> ImageSet:
    drawn = torch.Generator().manual_seed(seed)
    targets = torch.randint(3, (count,), generator=drawn)
    return ImageSet(torch.randn(count, 2, 6, 7, generator=drawn), targets)


@pytest.mark.parametrize("variance", [False, True])
def test_all_measures_are_the_single_ones(variance: bool) -> None:
    given, own = teacher(), images(9, 1)
    found = image_quality(own, given, batch_size=4, variance=variance)
    assert found.distance == batch_norm_distance(own, given, batch_size=4, variance=variance)
    assert found.diversity == diversity(own, given, batch_size=4)
    assert found.clip is None
    assert found.to_json()["distance"]["batch_size"] == 4


def test_a_teacher_without_batch_norm_has_the_other_measures() -> None:
    found = image_quality(images(5, 1), teacher(norm=False))
    assert found.distance is None
    assert found.diversity.count == 5
    assert found.to_json()["distance"] is None


def test_both_sets_are_measured_in_batches_that_both_fill() -> None:
    found, real = compared_quality(images(11, 1), images(3, 2), teacher(), batch_size=8)
    assert real is not None
    assert found.distance is not None
    assert real.distance is not None
    assert found.distance.batch_size == real.distance.batch_size == 3
    assert (found.distance.count, real.distance.count) == (9, 3)
    alone, nothing = compared_quality(images(11, 1), None, teacher(), batch_size=8)
    assert nothing is None
    assert alone.distance is not None
    assert alone.distance.batch_size == 8
