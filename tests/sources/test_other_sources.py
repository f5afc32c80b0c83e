"""What GDFQ, ZAQ and AutoReCon are made of, and what they refuse."""

from typing import Any

import pytest
import torch
from torch import nn

from emptyset.generators.autorecon_cells import AutoReConBackbone
from emptyset.generators.conditions import NoiseAlone, ScaledEmbedding
from emptyset.generators.source_maker import SourceMaker
from emptyset.generators.upsampling_backbone import UpsamplingBackbone
from emptyset.sources.autorecon import AutoReCon, AutoReConConfig
from emptyset.sources.gdfq import Gdfq, GdfqConfig
from emptyset.sources.zaq import Zaq, ZaqConfig
from emptyset.teachers.teacher import InputSpec, Teacher


def teacher_of(size: int = 8, classes: int = 5) -> Teacher:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3, 8, 1), nn.BatchNorm2d(6), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes),
        )  # fmt: skip
    spec = InputSpec((3, size, size), (0.5,) * 3, (0.25,) * 3)
    return Teacher("test", net.requires_grad_(False).eval(), spec)


def test_gdfq_takes_labels_as_its_code_does_for_small_and_for_large_images() -> None:
    small, large = (
        Gdfq(GdfqConfig(latent=6, widths=(5, 4))).source(teacher_of(size), seed=0)
        for size in (64, 68)
    )
    assert isinstance(small.generator.condition, ScaledEmbedding)
    assert not small.generator.backbone.conditional
    assert isinstance(large.generator.condition, NoiseAlone)
    assert large.generator.backbone.conditional
    assert large.generator.backbone.norm1.gain.shape == (5, 5)
    forced = Gdfq(GdfqConfig(latent=6, widths=(5, 4), backbone="imagenet"))
    assert forced.source(teacher_of(), seed=0).generator.backbone.conditional


def test_gdfqs_generator_has_the_published_number_of_parameters() -> None:
    made = Gdfq(GdfqConfig()).source(teacher_of(size=32, classes=10), seed=0)
    linear = 100 * 128 * 64 + 128 * 64
    convolutions = 128 * 128 * 9 + 128 + 128 * 64 * 9 + 64 + 64 * 3 * 9 + 3
    norms = 2 * (128 + 128 + 64)
    expected = 10 * 100 + linear + convolutions + norms
    assert sum(p.numel() for p in made.generator.parameters()) == expected


def test_gdfqs_epsilon_is_the_codes_and_zaqs_is_torchs() -> None:
    gdfq = Gdfq(GdfqConfig()).source(teacher_of(), seed=0).generator.backbone
    zaq = Zaq(ZaqConfig()).source(teacher_of(), seed=0).generator.backbone
    assert isinstance(zaq, UpsamplingBackbone)
    assert [n.norm.eps for n in (gdfq.norm0, gdfq.norm1, gdfq.norm2)] == [1e-5, 0.8, 0.8]
    assert [n.norm.eps for n in (zaq.norm0, zaq.norm1, zaq.norm2)] == [1e-5] * 3


def test_zaqs_defaults_are_those_of_the_released_code_for_cifar() -> None:
    config = ZaqConfig()
    assert (config.latent, config.widths, config.student_steps) == (256, (128, 64), 5)
    assert (config.relation_weight, config.activation_weight) == (1.0, 0.1)
    assert (config.learning_rate, config.momentum) == (1e-3, (0.9, 0.999))
    # Epochs 100 and 200 of 300.
    assert config.milestones == pytest.approx((100 / 300, 200 / 300))


def test_zaqs_images_have_no_labels() -> None:
    made = Zaq(ZaqConfig.smallest()).source(teacher_of(), seed=0)
    assert made.next_batch(4).targets is None
    assert made.drawn(5, seed=0).targets is None
    assert (made.needs_student, made.needs_features) == (True, True)
    without = Zaq(ZaqConfig(relation_weight=0.0, activation_weight=0.0, widths=(5, 4)))
    assert not without.source(teacher_of(), seed=0).needs_features


@pytest.mark.parametrize("size", [9, 10, 11])
@pytest.mark.parametrize(
    "made_by",
    [
        Gdfq(GdfqConfig(latent=6, widths=(5, 4), backbone="cifar")),
        Gdfq(GdfqConfig(latent=6, widths=(5, 4), backbone="imagenet")),
        Zaq(ZaqConfig.smallest()),
        AutoReCon(AutoReConConfig.smallest()),
    ],
)
def test_sizes_that_the_doublings_do_not_give_are_made_all_the_same(
    size: int, made_by: SourceMaker
) -> None:
    made = made_by.source(teacher_of(size), seed=0)
    assert made.next_batch(4).images.shape == (4, 3, size, size)
    assert made.drawn(5, seed=0).images.shape == (5, 3, size, size)


@pytest.mark.parametrize(
    ("size", "classes", "expected"), [(8, 5, "cifar10"), (8, 11, "cifar100"), (72, 5, "resnet18")]
)
def test_autorecon_takes_the_cells_found_for_networks_like_this(
    size: int, classes: int, expected: str
) -> None:
    auto, named = (
        AutoReCon(AutoReConConfig(cells=cells, width=3, latent=4))
        .source(teacher_of(size, classes), seed=0)
        .generator.backbone
        for cells in ("auto", expected)
    )
    assert isinstance(auto, AutoReConBackbone)
    shapes = [[tuple(p.shape) for p in net.parameters()] for net in (auto, named)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (GdfqConfig, {"backbone": "vgg"}, "'backbone' must be one of auto, cifar, imagenet"),
        (GdfqConfig, {"latent": 0}, "'latent' must be positive"),
        (GdfqConfig, {"statistics_weight": -1.0}, "'statistics_weight' must not be negative"),
        (ZaqConfig, {"label_weight": 0.1}, "source qimera with base zaq"),
        (ZaqConfig, {"class_similarity_weight": 0.1}, "source qimera with base zaq"),
        (ZaqConfig, {"student_steps": 0}, "'student_steps' must be positive"),
        (AutoReConConfig, {"latent": 2}, "'latent' is cut into three"),
        (AutoReConConfig, {"cells": "vgg"}, "'cells' must be one of"),
    ],
)
def test_settings_are_checked(config: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**settings)
