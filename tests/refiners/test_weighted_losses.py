"""Each of the student's losses alone, with a weight that is neither 0 nor 1."""

import pytest
import torch
import torch.nn.functional as F
from feature_relations import distance_of_relations
from learning_beside_source import BITS
from torch import Tensor

from emptyset.refiners.distill import DistillConfig
from emptyset.refiners.student_losses import Opinions, weighted_losses

IMAGES, CLASSES, T = 6, 5, 3.0
RANDOM = torch.Generator().manual_seed(0)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=RANDOM, dtype=torch.double)


OURS, THEIRS = drawn(IMAGES, CLASSES), drawn(IMAGES, CLASSES)
OUR_MAPS, THEIR_MAPS = ([drawn(IMAGES, 4, 3, 2), drawn(IMAGES, 7, 8, 1)] for _ in range(2))
TARGETS = torch.tensor([3, 0, 4, 4, 1, 2])
SAID = Opinions(OURS, THEIRS, OUR_MAPS[:1], THEIR_MAPS[:1], OUR_MAPS, THEIR_MAPS)


def divergence() -> Tensor:
    p = F.softmax(THEIRS / T, 1)
    return T**2 * (p * (p.log() - F.log_softmax(OURS / T, 1))).sum() / IMAGES


def entropy() -> Tensor:
    return -F.log_softmax(OURS, 1)[range(IMAGES), TARGETS].mean()


def flatness() -> Tensor:
    p = F.softmax((THEIRS - OURS) / T, 1)
    return T**2 * (p * (p * CLASSES).log()).sum(1).mean()


def attention() -> Tensor:
    strengths = [maps.square().mean((2, 3)) for maps in (OUR_MAPS[0], THEIR_MAPS[0])]
    ours, theirs = (x / x.square().sum(1, keepdim=True).sqrt() for x in strengths)
    return (ours - theirs).square().mean()


EXPECTED = {
    "distillation": ("distillation", 1.7, divergence()),
    "cross_entropy": ("cross entropy", 0.1, entropy()),
    "feature_attention": ("feature attention", 30.0, attention()),
    "logit_distance": ("logit distance", 0.7, (OURS - THEIRS).abs().mean()),
    "flatness": ("flatness", 2.5, flatness()),
    "relations": ("feature relations", 0.3, distance_of_relations(OUR_MAPS, THEIR_MAPS)),
}


@pytest.mark.parametrize("setting", EXPECTED)
def test_a_loss_counts_as_often_as_its_weight_says(setting: str) -> None:
    name, weight, expected = EXPECTED[setting]
    weights = dict.fromkeys(EXPECTED, 0.0) | {setting: weight}
    course = DistillConfig(preset="zaq", temperature=T, **weights).course(BITS)
    found = weighted_losses(course, SAID, TARGETS if setting == "cross_entropy" else None)
    assert found.keys() == {name}
    assert float(found[name]) == pytest.approx(weight * float(expected), rel=1e-9)


def test_all_losses_count_at_once() -> None:
    weights = {setting: weight for setting, (_, weight, _) in EXPECTED.items()}
    course = DistillConfig(preset="zaq", temperature=T, **weights).course(BITS)
    found = weighted_losses(course, SAID, TARGETS)
    expected = {name: weight * float(value) for name, weight, value in EXPECTED.values()}
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected)
