"""Lessons against a plain loop of torch: the published losses, Adam, one forward each."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from counting_teacher import BATCH, CLASSES, CountingNet, made, student_of, teacher_of
from small_teachers import stages_of
from torch import Tensor, nn

from emptyset.errors import UnsupportedModelError
from emptyset.generators.generator_source import GeneratorSource
from emptyset.images.image_source import Disagreement, Fault
from emptyset.losses.feature_relations import feature_relation_loss
from emptyset.teachers.teacher import Teacher


@pytest.fixture
def teacher() -> Teacher:
    with torch.random.fork_rng(devices=[]):
        return teacher_of(CountingNet())


def recording_draws(source: GeneratorSource) -> list[dict[str, Tensor]]:
    """What the generator is given in each lesson from now on."""
    drawn: list[dict[str, Tensor]] = []
    whole = source.generator.draw

    def draw(*arguments: Any) -> dict[str, Tensor]:
        drawn.append(whole(*arguments))
        return drawn[-1]

    source.generator.draw = draw  # type: ignore[method-assign]
    return drawn


def alike(features_NF: Tensor) -> Tensor:
    """Mean over the images of the cosine with the mean of the others, image by image."""
    cosines = []
    for n in range(len(features_NF)):
        others = torch.cat([features_NF[:n], features_NF[n + 1 :]]).mean(0).detach()
        cosines.append(features_NF[n] @ others / (features_NF[n].norm() * others.norm()))
    return sum(cosines, torch.zeros(())) / len(cosines)


def alike_within(features_NF: Tensor, targets: Tensor) -> Tensor:
    """Mean cosine of pairs, weighted by what they share of a class, pair by pair."""
    y = targets if targets.dim() == 2 else F.one_hot(targets, CLASSES).float()
    total, weights = torch.zeros(()), 0.0
    for i in range(len(y)):
        for j in range(i):
            shared = float(y[i] @ y[j])
            total = total + shared * F.cosine_similarity(features_NF[i], features_NF[j], dim=0)
            weights += shared
    return total / weights if weights else total


class PlainLoop:
    """The published loop: nothing shared, nothing frozen."""

    def __init__(
        self,
        source: GeneratorSource,
        teacher: Teacher,
        weight: float,
        *,
        similarity: float = 0.0,
        within: float = 0.0,
    ) -> None:
        self.net, self.weight = copy.deepcopy(source.generator), weight
        self.similarity, self.within = similarity, within
        self.teacher = copy.deepcopy(teacher.module).requires_grad_(True)
        self.adam = torch.optim.Adam(
            [p for p in self.net.parameters() if p.requires_grad], lr=1e-3, betas=(0.5, 0.999)
        )
        self.inputs: list[Tensor] = []
        self.norms = [m for m in self.teacher.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in self.norms:
            norm.register_forward_hook(lambda _m, given, _o: self.inputs.append(given[0]))
        self.features: list[Tensor] = []
        self.teacher.linear.register_forward_hook(
            lambda _m, given, _o: self.features.append(given[0])
        )

    def lesson(self, drawn: dict[str, Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
        self.inputs.clear()
        self.features.clear()
        images = self.net(drawn)
        logits = self.teacher(images)
        gaps = [
            F.mse_loss(x.mean((0, 2, 3)), norm.running_mean)
            + F.mse_loss(x.var((0, 2, 3), unbiased=False), norm.running_var)
            for x, norm in zip(self.inputs, self.norms, strict=True)
        ]
        loss = F.cross_entropy(logits, targets) + self.weight * sum(gaps) / len(gaps)
        loss = loss + self.similarity * alike(self.features[0])
        loss = loss + self.within * alike_within(self.features[0], targets)
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        return images.detach(), logits.detach()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gdfq", {}),
        ("gdfq", {"backbone": "imagenet"}),
        ("autorecon", {}),
        ("qimera", {"superposed_share": 0.5, "superposed_classes": 3}),
        ("qimera", {"superposed_share": 0.5, "noise": "per_slot", "embeddings": "frozen"}),
        (
            "qimera",
            {"base": "autorecon", "width": 4, "superposed_share": 0.5, "embedding_spread": None},
        ),
        ("gdfq", {"similarity_weight": 2.0}),
        ("qimera", {"similarity_weight": 2.0}),
        ("gdfq", {"class_similarity_weight": 3.0}),
        ("qimera", {"class_similarity_weight": 3.0, "superposed_share": 0.5}),
    ],
)
def test_lessons_are_those_of_the_published_loop(
    name: str, settings: dict[str, Any], teacher: Teacher
) -> None:
    source = made(name, teacher, **settings)
    plain = PlainLoop(
        source,
        teacher,
        weight=0.1,
        similarity=settings.get("similarity_weight", 0.0),
        within=settings.get("class_similarity_weight", 0.0),
    )
    drawn = recording_draws(source)
    for _ in range(4):
        lesson = source.next_batch(BATCH)
        assert lesson.targets is not None
        images, logits = plain.lesson(drawn[-1], lesson.targets)
        torch.testing.assert_close(lesson.images, images, atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(lesson.teacher_logits, logits, atol=2e-3, rtol=1e-3)
        assert lesson.student_learns
        assert not lesson.source_learns
    ours = dict(source.generator.named_parameters())
    for key, value in plain.net.named_parameters():
        # A bias before BatchNorm has no gradient but rounding's, which Adam makes large.
        if not key.endswith("bias"):
            torch.testing.assert_close(ours[key], value, atol=2e-4, rtol=1e-3, msg=key)


def test_one_teacher_forward_serves_generator_and_student(teacher: Teacher) -> None:
    source = made("gdfq", teacher)
    copied = source._watched._frozen.module
    before = copied.forwards
    for _ in range(3):
        source.next_batch(BATCH)
    assert copied.forwards - before == 3


def test_images_come_in_the_teachers_units() -> None:
    with torch.random.fork_rng(devices=[]):
        unit = teacher_of(CountingNet(), mean=0.0, std=1.0)
    lesson = made("gdfq", unit).next_batch(64)
    # Standardised images of photographs: pixel mean 0.45, standard deviation 0.25.
    assert float(lesson.images.mean()) == pytest.approx(0.45, abs=0.01)
    assert float(lesson.images.std()) == pytest.approx(0.25, abs=0.01)


def test_the_learning_rate_falls_after_shares_of_the_lessons(teacher: Teacher) -> None:
    source = made("gdfq", teacher)
    source.begin(8, BATCH)
    rates = []
    for _ in range(8):
        source.next_batch(BATCH)
        rates.append(source._optimizer.param_groups[0]["lr"])
    expected = [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("similarity", [0.0, 3.0])
def test_lessons_through_the_student_are_steps_of_adam_down_the_joint_gradient(
    similarity: float, teacher: Teacher
) -> None:
    """The source goes through the images; a plain loop backpropagates all of it at once."""
    weights = {"relation_weight": 0.7, "activation_weight": 0.9, "similarity_weight": similarity}
    source = made("zaq", teacher, student_steps=1, learning_rate=1e-2, **weights)
    plain, student = copy.deepcopy(source.generator), student_of(teacher)
    adam = torch.optim.Adam(plain.parameters(), lr=1e-2, betas=(0.9, 0.999))
    drawn = recording_draws(source)
    for _ in range(3):
        assert not source.next_batch(BATCH).source_learns
        lesson = source.next_batch(BATCH)
        assert lesson.source_learns
        assert not lesson.student_learns
        theirs, their_maps = stages_of(teacher.module, lesson.images)
        ours, our_maps = stages_of(student, lesson.images)
        source.learn_from(Disagreement(lesson, theirs, ours, their_maps, our_maps))
        assert all(p.grad is None for p in student.parameters())

        x = plain(drawn[-1])
        torch.testing.assert_close(lesson.images.detach(), x.detach(), atol=1e-3, rtol=1e-3)
        theirs, their_maps = stages_of(teacher.module, x)
        ours, our_maps = stages_of(student, x)
        loss = -(ours - theirs).abs().mean() - 0.7 * feature_relation_loss(our_maps, their_maps)
        loss = loss - 0.9 * their_maps[1].abs().mean()
        loss = loss + similarity * alike(their_maps[1].mean((2, 3)))
        adam.zero_grad()
        loss.backward()
        adam.step()
        student.zero_grad()
    found = dict(source.generator.named_parameters())
    for key, value in plain.named_parameters():
        if not key.endswith("bias"):
            torch.testing.assert_close(found[key], value, atol=2e-4, rtol=1e-3, msg=key)


def test_zaq_asks_for_the_student_once_in_six_lessons(teacher: Teacher) -> None:
    source = made("zaq", teacher)
    kinds = []
    for _ in range(12):
        lesson = source.next_batch(BATCH)
        kinds.append((lesson.student_learns, lesson.source_learns))
        assert lesson.images.requires_grad is lesson.source_learns
    assert kinds == ([(True, False)] * 5 + [(False, True)]) * 2


def test_a_term_that_is_not_finite_is_named(teacher: Teacher) -> None:
    source = made("gdfq", teacher)
    source.next_batch(BATCH)
    assert source.fault() is None
    with torch.no_grad():
        source.generator.backbone.conv1.bias.fill_(float("nan"))
    source.next_batch(BATCH)
    assert source.fault() == Fault("gdfq: cross entropy", 1)
    source.next_batch(BATCH)
    source.next_batch(BATCH)
    assert source.fault() == Fault("gdfq: cross entropy", 3)
    healthy = made("gdfq", teacher)
    healthy._watched._frozen.layers[0].var.fill_(float("inf"))
    healthy.next_batch(BATCH)
    assert healthy.fault() == Fault("gdfq: batch norm statistics", 1)


def test_frozen_embeddings_stay_and_trained_ones_move(teacher: Teacher) -> None:
    for embeddings, moves in (("frozen", False), ("trained", True), ("random", True)):
        source = made("qimera", teacher, embeddings=embeddings, embedding_spread=None)
        before = source.generator.condition.embedding.weight.clone()
        assert torch.equal(before, teacher.module.linear.weight) is (embeddings != "random")
        for _ in range(3):
            source.next_batch(BATCH)
        now = source.generator.condition.embedding.weight
        assert torch.equal(now, before) is not moves


def test_a_teacher_without_batch_norm_is_told_what_else_there_is() -> None:
    with torch.random.fork_rng(devices=[]):
        plain = teacher_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(240, 3)))
    with pytest.raises(UnsupportedModelError, match="use the source `zaq`"):
        made("gdfq", plain)
    assert made("zaq", plain).next_batch(BATCH).images.shape == (BATCH, 3, 8, 12)
    assert made("gdfq", plain, statistics_weight=0.0).next_batch(BATCH).targets is not None


def test_trained_again_the_schedule_begins_anew(teacher: Teacher) -> None:
    source = made("zaq", teacher, milestones=(0.25, 0.75), student_steps=2)
    rates, turns = [], []
    for _ in range(2):
        source.begin(8, BATCH)
        for _ in range(8):
            lesson = source.next_batch(BATCH)
            turns.append(lesson.source_learns)
            rates.append(source._optimizer.param_groups[0]["lr"])
    rate = source.method.config.learning_rate
    assert rates == pytest.approx(([rate] * 2 + [rate / 10] * 4 + [rate / 100] * 2) * 2)
    assert turns == ([False, False, True] * 3)[:8] * 2
    # Whoever goes on from a kept state stands in the same place of the schedule.
    other = made("zaq", teacher, milestones=(0.25, 0.75), student_steps=2)
    source.begin(8, BATCH)
    source.next_batch(BATCH)
    other.load_state(source.state())
    other.next_batch(BATCH)
    assert other.next_batch(BATCH).source_learns
    assert other._optimizer.param_groups[0]["lr"] == pytest.approx(rate / 10)
    assert other.card()["lessons"] == 19


def test_images_that_are_not_finite_are_named_where_no_term_was_judged(teacher: Teacher) -> None:
    source = made("adasg", teacher)
    assert source.next_batch(BATCH).source_learns
    assert source.fault() is None
    with torch.no_grad():
        source.generator.backbone.conv1.bias.fill_(float("nan"))
    source.next_batch(BATCH)
    assert source.fault() == Fault("adasg: generated images", 1)
