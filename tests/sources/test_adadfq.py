"""AdaDFQ's own numbers; the loss itself is AdaSG's and tested there."""

import pytest
import torch
from torch import nn

from emptyset.sources.adadfq import AdaDfq, AdaDfqConfig
from emptyset.sources.adasg import AdaSgConfig
from emptyset.teachers.teacher import InputSpec, Teacher


def test_defaults_are_those_of_the_released_code() -> None:
    ours, other = AdaDfqConfig(), AdaSgConfig()
    assert (ours.difference_weight, ours.sum_weight) == (0.2, 0.1)
    assert (ours.entropy_low, ours.entropy_high, ours.statistics_weight) == (0.1, 0.8, 1.0)
    assert (other.difference_weight, other.sum_weight) == (0.1, 0.1)
    assert (other.entropy_low, other.entropy_high, other.statistics_weight) == (0.3, 0.8, 1.0)
    assert (ours.margin_weight, ours.label_weight, ours.legacy) == (1.0, 0.0, False)


def test_its_loss_is_made_of_its_own_weights() -> None:
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3, 4), nn.BatchNorm2d(6), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 7),
        )  # fmt: skip
    spec = InputSpec((3, 8, 12), (0.5,) * 3, (0.25,) * 3)
    teacher = Teacher("test", net.requires_grad_(False).eval(), spec)
    config = AdaDfqConfig(latent=6, widths=(5, 4), difference_weight=0.3)
    source = AdaDfq(config).source(teacher, seed=0)
    weights = {term.name: term.weight for term in source.method.terms}
    assert weights == {
        "margin": 1.0,
        "disagreement samples": 0.3,
        "agreement samples": 0.1,
        "batch norm statistics": 1.0,
    }
    assert source.method.name == "adadfq"
    assert source.needs_student


def test_the_margin_must_not_be_turned_round() -> None:
    with pytest.raises(ValueError, match="'entropy_low' must not exceed 'entropy_high'"):
        AdaDfqConfig(entropy_low=0.5, entropy_high=0.4)
