"""Qimera's own choices: how many classes, which widths, which base, what is refused."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.errors import RecipeError, UnsupportedModelError
from emptyset.generators.autorecon_cells import AutoReConBackbone
from emptyset.generators.class_mixture import ClassMixture
from emptyset.generators.conditional_norm import LabelledNorm
from emptyset.generators.conditions import SuperposedEmbedding
from emptyset.generators.embedding_source import class_centres
from emptyset.generators.generator_source import GeneratorSource
from emptyset.sources.qimera import Qimera, QimeraConfig
from emptyset.teachers.teacher import InputSpec, Teacher, hash_of_weights

SMALL: dict[str, Any] = {"widths": (5, 4), "width": 4}


def teacher_of(classes: int = 5, size: tuple[int, int] = (8, 12), features: int = 7) -> Teacher:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, features, 3, padding=1), nn.BatchNorm2d(features), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes),
        )  # fmt: skip
    net.requires_grad_(False).eval()
    spec = InputSpec((3, *size), (0.5,) * 3, (0.25,) * 3)
    return Teacher("test", net, spec, weights_hash=hash_of_weights(net))


def source(teacher: Teacher | None = None, **settings: Any) -> GeneratorSource:
    config = QimeraConfig(**SMALL | settings)
    return Qimera(config).source(teacher or teacher_of(), seed=0)


def condition(made: GeneratorSource) -> SuperposedEmbedding:
    assert isinstance(made.generator.condition, SuperposedEmbedding)
    return made.generator.condition


@pytest.mark.parametrize(("classes", "together"), [(2, 2), (10, 2), (100, 10), (101, 100)])
def test_by_itself_it_superposes_what_the_scripts_do(classes: int, together: int) -> None:
    assert QimeraConfig().together(classes) == together
    assert QimeraConfig(superposed_classes=25).together(classes) == 25


def test_embeddings_are_as_wide_as_the_classifiers_rows_and_mapped_as_published() -> None:
    made = condition(source())
    assert made.embedding.weight.shape == (5, 7)
    assert made.latent == 64
    assert condition(source(backbone="imagenet")).latent == 100
    assert condition(source(base="zaq")).latent == 256
    assert condition(source(base="autorecon")).latent == 100
    assert condition(source(mapped=6)).latent == 6
    assert condition(source(mapping=False)).latent == 7
    other = condition(source(embeddings="random", embedding_width=9, mapping=False))
    assert (other.embedding.embedding_dim, other.latent) == (9, 9)


@pytest.mark.parametrize("base", ["gdfq", "zaq", "autorecon"])
@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"superposed_share": 0.0},
        {"mapping": False, "embeddings": "random"},
        {"noise": "per_slot", "superposed_norm": "mean", "embeddings": "frozen"},
    ],
)
def test_every_part_can_be_switched_off_on_every_base(base: str, parts: dict[str, Any]) -> None:
    made = source(base=base, **{"superposed_classes": 3, "superposed_share": 1.0} | parts)
    lesson = made.next_batch(4)
    assert lesson.images.shape == (4, 3, 8, 12)
    assert bool(torch.isfinite(lesson.images).all())
    assert isinstance(made.generator.backbone, AutoReConBackbone) is (base == "autorecon")
    assert made.needs_student is (base == "zaq")
    assert lesson.targets is not None
    if parts.get("superposed_share") == 0.0:
        assert lesson.targets.shape == (4,)
    else:
        assert lesson.targets.shape == (4, 5)
        torch.testing.assert_close(lesson.targets.sum(dim=1), torch.ones(4))


def test_each_base_has_its_own_loss_and_optimizer() -> None:
    own = source()
    assert [(t.name, t.weight) for t in own.method.terms] == [
        ("cross entropy", 1.0), ("batch norm statistics", 0.1),
    ]  # fmt: skip
    assert own.method.config.momentum == (0.5, 0.999)
    zaq = source(base="zaq")
    assert [(t.name, t.weight) for t in zaq.method.terms] == [
        ("disagreement", 1.0), ("feature relations", 1.0), ("activation", 0.1),
        ("cross entropy", 0.1),
    ]  # fmt: skip
    assert zaq.method.config.momentum == (0.9, 0.999)
    assert zaq.method.config.milestones == (1 / 3, 2 / 3)
    assert source(base="zaq", momentum=(0.5, 0.9)).method.config.momentum == (0.5, 0.9)


def test_the_weights_that_are_set_are_those_of_the_loss() -> None:
    similarity = {"similarity_weight": 0.4, "class_similarity_weight": 0.6}
    own = source(label_weight=0.2, statistics_weight=0.3, **similarity)
    assert [(t.name, t.weight) for t in own.method.terms] == [
        ("cross entropy", 0.2), ("batch norm statistics", 0.3), ("similarity", 0.4),
        ("similarity within classes", 0.6),
    ]  # fmt: skip
    weights = {"relation_weight": 0.7, "activation_weight": 0.8, "label_weight": 0.9}
    zaq = source(base="zaq", **weights, **similarity)
    assert [(t.name, t.weight) for t in zaq.method.terms] == [
        ("disagreement", 1.0), ("feature relations", 0.7), ("activation", 0.8),
        ("cross entropy", 0.9), ("similarity", 0.4), ("similarity within classes", 0.6),
    ]  # fmt: skip


@pytest.mark.parametrize("norm", ["sum", "mean"])
@pytest.mark.parametrize("network", [{"backbone": "imagenet"}, {"base": "autorecon"}], ids=str)
@pytest.mark.parametrize("labels", [[[1, 4, 1], [0, 2, 3], [2, 2, 2], [3, 0, 4]], [[1], [3]]])
def test_gains_and_shifts_of_superposed_classes_are_their_sum_or_mean_over_the_slots(
    labels: list[list[int]], network: dict[str, Any], norm: str
) -> None:
    generator = source(superposed_norm=norm, widths=(6, 9), width=6, **network).generator
    random, slots = torch.Generator().manual_seed(5), len(labels[0])
    shares = torch.randn(len(labels), slots, generator=random).softmax(dim=1)
    layers = [part for part in generator.modules() if isinstance(part, LabelledNorm)]
    heard: list[tuple[LabelledNorm, Tensor, Tensor]] = []
    for layer in layers:
        with torch.no_grad():
            layer.gain.normal_(generator=random)
            layer.shift.normal_(generator=random)
        layer.register_forward_hook(lambda part, given, out: heard.append((part, given[0], out)))
    with torch.no_grad():
        generator(generator.draw(random, ClassMixture(torch.tensor(labels), shares)))
    assert len(heard) == len(layers) >= 3
    divisor = slots if norm == "mean" else 1
    for layer, x, out in heard:
        plain = F.batch_norm(x, None, None, training=True, eps=layer.norm.eps)
        for image, classes in enumerate(labels):
            gain, shift = (
                sum(s * table[c] / divisor for s, c in zip(shares[image], classes, strict=True))
                for table in (layer.gain, layer.shift)
            )
            expected = plain[image] * gain[:, None, None] + shift[:, None, None]
            torch.testing.assert_close(out[image], expected, atol=1e-4, rtol=1e-4)


def test_two_classes_can_be_superposed_ten_at_a_time_with_replacement() -> None:
    made = source(teacher_of(classes=2), superposed_classes=10, superposed_share=1.0)
    lesson = made.next_batch(4)
    assert lesson.targets is not None
    assert lesson.targets.shape == (4, 2)
    with pytest.raises(RecipeError, match="Set replacement to true, or superposed_classes to at"):
        source(teacher_of(classes=2), superposed_classes=10, replacement=False)


def test_one_class_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="at least 2 classes"):
        source(teacher_of(classes=1))


@pytest.mark.parametrize("size", [(9, 7), (10, 12), (5, 5)])
@pytest.mark.parametrize(
    "settings", [{}, {"base": "autorecon"}, {"backbone": "imagenet"}, {"base": "zaq"}]
)
def test_sizes_that_the_doublings_do_not_give_are_made_all_the_same(
    size: tuple[int, int], settings: dict[str, Any]
) -> None:
    made = source(teacher_of(size=size), superposed_share=0.5, **settings)
    conditional = bool(settings) and settings != {"base": "zaq"}
    assert made.generator.backbone.conditional is conditional
    for _ in range(2):
        images = made.next_batch(3).images.detach()
        assert images.shape == (3, 3, *size)
        # Nothing is left as it was padded or cut: every row and column differs from the next.
        for axis in (2, 3):
            length = images.shape[axis]
            ahead, behind = images.narrow(axis, 1, length - 1), images.narrow(axis, 0, length - 1)
            assert bool((ahead != behind).any(dim=5 - axis).all())
    assert made.drawn(4, seed=0).images.shape == (4, 3, *size)


@pytest.mark.parametrize("embeddings", ["trained", "frozen"])
def test_embeddings_of_another_width_than_the_classifiers_rows_are_refused(
    embeddings: str,
) -> None:
    with pytest.raises(UnsupportedModelError, match=r"length 9 .* rows of 7.*embeddings to random"):
        source(embeddings=embeddings, embedding_width=9)
    assert condition(source(embeddings=embeddings, embedding_width=7)).embedding.embedding_dim == 7


class PointwiseHead(nn.Module):
    """Ends with a convolution of one pixel, as MobileNetV2 of pytorchcv."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.output = nn.Conv2d(6, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x)).relu().mean((2, 3), keepdim=True)
        return self.output(x).flatten(1)


def test_a_classifier_that_is_a_convolution_gives_its_rows() -> None:
    net = PointwiseHead().requires_grad_(False).eval()
    teacher = Teacher("test", net, InputSpec((3, 8, 8), (0.5,) * 3, (0.25,) * 3))
    made = condition(source(teacher, embedding_spread=None))
    assert torch.equal(made.embedding.weight, net.output.weight.flatten(1))


def test_extracted_embeddings_stand_out_of_the_noise() -> None:
    teacher = teacher_of()
    rows = class_centres(teacher, 5)
    assert rows is not None
    made = condition(source(teacher, embedding_spread=3.0)).embedding.weight
    # The same directions, three times as far from each other as random embeddings are.
    torch.testing.assert_close(made / made.norm(), rows / rows.norm())
    assert made.std(dim=0).mean().item() == pytest.approx(3.0, rel=1e-5)


class NoHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)).mean((2, 3))


def test_without_a_linear_head_embeddings_start_at_random_or_not_at_all() -> None:
    net = NoHead().requires_grad_(False).eval()
    teacher = Teacher("test", net, InputSpec((3, 8, 8), (0.5,) * 3, (0.25,) * 3))
    with pytest.raises(UnsupportedModelError, match="Set embeddings to random"):
        source(teacher)
    made = source(teacher, embeddings="random")
    assert condition(made).embedding.embedding_dim == 100
    assert made.next_batch(3).images.shape == (3, 3, 8, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base": "adasg"}, "'base' must be one of gdfq, zaq, autorecon"),
        ({"embeddings": "learnt"}, "'embeddings' must be one of trained, frozen, random"),
        ({"embedding_spread": 0.0}, "'embedding_spread' must be positive"),
        ({"noise": "before"}, "'noise' must be one of after_mapping, per_slot"),
        ({"superposed_norm": "max"}, "'superposed_norm' must be one of sum, mean"),
        ({"superposed_share": 1.5}, "'superposed_share' must lie in"),
        ({"superposed_classes": 0}, "'superposed_classes' must be positive"),
        ({"widths": (0, 4)}, "'widths' must be positive"),
        ({"learning_rate": 0.0}, "'learning_rate' must be positive"),
        ({"momentum": (1.0, 0.9)}, "'momentum' must lie in"),
        ({"milestones": (2.0,)}, "'milestones' are shares"),
        ({"label_weight": 0.0, "statistics_weight": 0.0}, "nothing shapes the images"),
        ({"base": "zaq", "student_steps": 0}, "'student_steps' must be positive"),
        ({"cells": "vgg"}, "'cells' must be one of auto, cifar10"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QimeraConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"mapped": 2}, "mapped"),
        ({"mapping": False, "embeddings": "random", "embedding_width": 2}, "embedding_width"),
        ({"mapping": False}, "embedding_width"),
    ],
)
def test_on_autorecon_too_narrow_a_latent_is_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(RecipeError, match=f"It is 2. Set {named} to 3 or more"):
        source(teacher_of(features=2), base="autorecon", **settings)
    assert source(teacher_of(features=3), base="autorecon", mapping=False).next_batch(2)
