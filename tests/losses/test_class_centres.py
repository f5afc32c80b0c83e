"""Distance from class centres, by loops over images, channels and layers."""

import pytest
import torch
from torch import Tensor

from emptyset.losses.class_centres import (
    ClassCentres,
    deeper_half,
    distance_from_all_centres,
    distance_from_own_centre,
)
from emptyset.losses.layer_statistics import LayerStatistics, layer_statistics

RANDOM = torch.Generator().manual_seed(0)
SHAPES = ((3, 6, 4), (5, 4, 2), (2, 3, 3))
MEANS = [torch.randn(shape[0], generator=RANDOM, dtype=torch.double) for shape in SHAPES]
CLASSES, IMAGES = 4, 7
TARGETS = torch.tensor([2, 0, 3, 3, 1, 2, 0])


def maps(count: int) -> list[Tensor]:
    return [torch.randn(count, *s, generator=RANDOM, dtype=torch.double) for s in SHAPES]


def statistics(features: list[Tensor]) -> tuple[LayerStatistics, ...]:
    pairs = zip(features, MEANS, strict=True)
    return tuple(layer_statistics(x, mean, torch.ones_like(mean)) for x, mean in pairs)


SHOWN, BEST = maps(IMAGES), maps(CLASSES)
LAYERS, CENTRES = statistics(SHOWN), ClassCentres.of(statistics(BEST))


def moments(x_CHW: Tensor) -> list[tuple[float, float]]:
    return [(float(c.mean()), float(c.var(correction=0))) for c in x_CHW]


def test_the_deeper_half_holds_the_middle_layer() -> None:
    assert [list(deeper_half(n)) for n in (1, 2, 5)] == [[0], [1], [2, 3, 4]]


def test_every_image_is_compared_with_the_centre_of_its_class() -> None:
    expected = []
    for layer in (1, 2):
        gaps = [0.0, 0.0]
        for image, label in zip(SHOWN[layer], TARGETS.tolist(), strict=True):
            pairs = zip(moments(image), moments(BEST[layer][label]), strict=True)
            for (mean, variance), (own_mean, own_variance) in pairs:
                gaps[0] += (mean - own_mean) ** 2
                gaps[1] += (variance - own_variance) ** 2
        expected.append(sum(gaps) / (IMAGES * SHAPES[layer][0]))
    found = distance_from_own_centre(LAYERS, TARGETS, CENTRES)
    assert float(found) == pytest.approx(sum(expected) / 2, rel=1e-9)


def test_the_batch_is_compared_with_all_centres_as_one_set() -> None:
    expected = []
    for layer in (1, 2):
        total = 0.0
        for channel in range(SHAPES[layer][0]):
            ours, theirs = SHOWN[layer][:, channel], BEST[layer][:, channel]
            total += float((ours.mean() - theirs.mean()) ** 2)
            total += float((ours.var(correction=0) - theirs.var(correction=0)) ** 2)
        expected.append(total / SHAPES[layer][0])
    found = distance_from_all_centres(LAYERS, CENTRES)
    # SynQ divides by all layers, the shallow ones too, and by the images.
    assert float(found) == pytest.approx(sum(expected) / (len(SHAPES) * IMAGES), rel=1e-9)


def test_centres_themselves_are_at_distance_zero() -> None:
    own = statistics(BEST)
    assert float(distance_from_own_centre(own, torch.arange(CLASSES), CENTRES)) == 0.0
    assert float(distance_from_all_centres(own, CENTRES)) == pytest.approx(0.0, abs=1e-18)
