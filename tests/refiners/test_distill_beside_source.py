"""Student and source learn in one loop: who learns when, what is kept, what happens to NaN."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from learning_beside_source import (
    BATCH,
    BITS,
    PUBLISHED,
    STEPS,
    batches_of,
    make,
    moves,
    pulls,
    taught,
)
from small_teachers import two_convolutions
from torch import Tensor, nn

from emptyset.errors import ImagesError, RecipeError, UnsupportedModelError
from emptyset.graph.student import Student, prepare
from emptyset.monitor import SilentMonitor
from emptyset.refiners.distill import DistillConfig
from emptyset.refiners.finite_losses import DivergedError
from emptyset.refiners.training import Training
from emptyset.teachers.teacher import InputSpec, Teacher


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return two_convolutions()


class Counting:
    """Counts the forwards of a student's program and of a teacher's network."""

    def __init__(self, student: Student) -> None:
        self.student, self.teacher = 0, 0
        self._handles = [
            student.program.register_forward_pre_hook(lambda *_: self._add("student")),
            student.teacher.module.register_forward_pre_hook(lambda *_: self._add("teacher")),
        ]

    def _add(self, which: str) -> None:
        setattr(self, which, getattr(self, which) + 1)

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()


def test_neither_network_is_asked_when_nobody_needs_the_answer(teacher: Teacher) -> None:
    student, source = prepare(teacher, BITS, **PUBLISHED), make("gdfq", teacher)
    counting = Counting(student)
    taught(
        teacher,
        source,
        student=student,
        preset="gdfq",
        steps=40,
        warm_up=0.75,
        held_out=0,
        precision="float32",
    )
    counting.stop()
    # One image to see whether compiling pays. Of the generator's 30 lessons ranges are tracked in
    # the last 20.
    assert counting.student == 1 + 20 + 10
    # The source's own copy said it all.
    assert counting.teacher == 0


@pytest.mark.parametrize(("legacy", "tracked"), [(False, [8, 9, 10, 11]), (True, [0, 1, 2, 3])])
def test_ranges_are_tracked_at_the_end_of_the_warm_up_or_as_released(
    legacy: bool, tracked: list[int], teacher: Teacher
) -> None:
    student = prepare(teacher, BITS, **PUBLISHED)
    source = make("gdfq", teacher)
    config = DistillConfig(preset="gdfq", steps=400, warm_up=0.03, batch_size=BATCH, legacy=legacy)
    course = replace(config.course(BITS, source), range_steps=4)
    assert [n for n in range(400) if course.tracks(n)] == tracked
    training = Training(student, source, course, 0)
    scales: list[list[float]] = []
    with training._learning():
        for number in range(14):
            training._update(number)
            scales.append([float(q.scale) for q in student.quantizers.values() if q.axis is None])
    moved = [n for n, (a, b) in enumerate(itertools.pairwise(scales), 1) if a != b]
    assert set(moved) <= set(tracked)
    assert len(moved) >= 3


def test_the_student_is_not_updated_in_the_warm_up(teacher: Teacher) -> None:
    student, source = prepare(teacher, BITS, **PUBLISHED), make("gdfq", teacher)
    course = DistillConfig(preset="gdfq", steps=40, warm_up=0.25, batch_size=BATCH).course(BITS)
    training = Training(student, source, course, 0)
    before = {k: v.detach().clone() for k, v in student.program.named_parameters()}
    with training._learning():
        for number in range(12):
            training._update(number)
            same = all(torch.equal(v, before[k]) for k, v in student.program.named_parameters())
            assert same is (number < 10)


def test_gdfqs_update_is_the_published_one(teacher: Teacher) -> None:
    """SGD with Nesterov momentum on cross entropy and the weak divergence, by torch's own parts."""
    student, source = prepare(teacher, BITS, **PUBLISHED), make("gdfq", teacher)
    config = DistillConfig(preset="gdfq", steps=40, batch_size=BATCH, learning_rate=0.01)
    training = Training(student, source, config.course(BITS, source), 0)
    given = batches_of(source)
    with training._learning():
        training._update(0)
        training._update(1)
        moved, lesson = moves(training, 2), given[-1]
        ours = student(lesson.images)
        theirs = F.softmax(lesson.teacher_logits / 20, 1)
        divergence = theirs * (theirs.log() - F.log_softmax(ours / 20, 1))
        loss = F.cross_entropy(ours, lesson.targets) + 400 * divergence.mean()
        pull = pulls(training, loss, 1e-4)
        for path, parameter in training._parameters.items():
            value = parameter.detach()
            buffer = training._optimizer.state[parameter]["momentum_buffer"]
            expected = value - 0.01 * (pull[path] + 0.9 * buffer)
            after = value + moved[path]
            torch.testing.assert_close(after, expected, atol=1e-6, rtol=1e-4, msg=path)


def test_adasgs_update_is_the_published_one_and_takes_one_forward_of_each(
    teacher: Teacher,
) -> None:
    """SGD on T² times the negative entropy of the softened difference, by torch's own parts."""
    student, source = prepare(teacher, BITS, **PUBLISHED), make("adasg", teacher)
    config = DistillConfig(preset="adasg", steps=40, batch_size=BATCH, learning_rate=0.01)
    training = Training(student, source, config.course(BITS, source), 0)
    given = batches_of(source)
    with training._learning():
        training._update(0)
        counting = Counting(student)
        training._learning_pair = training._pair
        moved = moves(training, 1)
        counting.stop()
        assert (counting.student, counting.teacher) == (1, 0)
        ours = student(given[-1].images.detach())
        log_p = F.log_softmax((given[-1].teacher_logits - ours) / 20, 1)
        pull = pulls(training, 400 * (log_p.exp() * log_p).sum(1).mean(), 1e-4)
        for path, parameter in training._parameters.items():
            value = parameter.detach()
            # Its first update: the buffer is the gradient.
            expected = value - 0.01 * (pull[path] + 0.9 * pull[path])
            after = value + moved[path]
            torch.testing.assert_close(after, expected, atol=1e-6, rtol=1e-3, msg=path)


def test_mixed_images_without_labels_are_learnt_from_the_teachers_answer(teacher: Teacher) -> None:
    student, source = prepare(teacher, BITS, **PUBLISHED), make("texq", teacher)
    config = DistillConfig(preset="texq", steps=40, batch_size=BATCH)
    training = Training(student, source, config.course(BITS, source), 0)
    lesson = source.next_batch(BATCH)
    shown = training._shown(lesson, 3, mixing=training._course.mixing)
    assert shown.targets is None
    assert not torch.equal(shown.images, lesson.images)
    with training._learning():
        said = training._say(training._pair, lesson, shown.images)
    torch.testing.assert_close(said.theirs, teacher.module(shown.images))


def test_beside_a_source_that_asks_the_student_mixed_images_are_learnt_from(
    teacher: Teacher,
) -> None:
    """What it said of whole images is for the source alone."""
    student, source = prepare(teacher, BITS, **PUBLISHED), make("adasg", teacher)
    config = DistillConfig(
        preset="adasg", steps=40, batch_size=BATCH, learning_rate=0.01, mixing="cutmix"
    )
    training = Training(student, source, config.course(BITS, source), 0)
    seen: list[Tensor] = []
    with training._learning():
        training._update(0)
        handle = student.program.register_forward_pre_hook(lambda _, x: seen.append(x[0].detach()))
        moved = moves(training, 1)
        handle.remove()
        whole, mixed = seen
        own = (mixed == whole).all(1)
        assert not own.all()
        for n in range(BATCH):
            partners = [(mixed[n] == whole[m]).all(0) | own[n] for m in range(BATCH)]
            assert any(bool(explained.all()) for explained in partners)
        log_p = F.log_softmax((teacher.module(mixed) - student(mixed)) / 20, 1)
        pull = pulls(training, 400 * (log_p.exp() * log_p).sum(1).mean(), 1e-4)
    for path, value in moved.items():
        torch.testing.assert_close(value, -0.019 * pull[path], atol=1e-6, rtol=1e-3, msg=path)


def test_soft_labels_reach_the_students_cross_entropy(teacher: Teacher) -> None:
    student = prepare(teacher, BITS, **PUBLISHED)
    source = make("qimera", teacher, superposed_share=1.0)
    config = DistillConfig(
        preset="gdfq", steps=40, batch_size=BATCH, learning_rate=0.01, distillation=0.0
    )
    training = Training(student, source, config.course(BITS, source), 0)
    given = batches_of(source)
    with training._learning():
        training._update(0)
        moved = moves(training, 1)
        shares = given[-1].targets
        assert bool((shares.max(1).values < 1).any())
        log_p = F.log_softmax(student(given[-1].images), 1)
        pull = pulls(training, -(shares * log_p).sum(1).mean(), 1e-4)
    for path, value in moved.items():
        torch.testing.assert_close(value, -0.019 * pull[path], atol=1e-6, rtol=1e-3, msg=path)


def test_unlabelled_images_and_a_cross_entropy_exclude_each_other(teacher: Teacher) -> None:
    with pytest.raises(ImagesError, match="Set cross_entropy to 0"):
        taught(teacher, make("zaq", teacher), **PUBLISHED, preset="gdfq")


class Heard(SilentMonitor):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.mark.parametrize(
    ("held_out", "judge", "said"), [(0, None, True), (8, None, False), (0, lambda _: 1.0, False)]
)
def test_a_best_student_that_nothing_can_tell_is_told_of(
    held_out: int, judge: Any, said: bool, teacher: Teacher
) -> None:
    heard = Heard()
    taught(
        teacher, make("gdfq", teacher), **PUBLISHED, preset="gdfq", keep="best",
        held_out=held_out, evaluate=judge, monitor=heard,
    )  # fmt: skip
    assert any("keep is 'best'" in note for note in heard.notes) == said


@pytest.mark.parametrize(
    ("source", "settings", "said"),
    [
        ("gdfq", {"preset": "gdfq", "warm_up": 0.0}, "it is 1, since the student's ranges"),
        ("gdfq", {"preset": "gdfq", "warm_up": 0.5}, None),
        ("gdfq", {"preset": "gdfq"}, None),
        ("adasg", {"preset": "learned", "warm_up": 0.5}, "it is 0, since a source that learns"),
        ("gdfq", {"preset": "learned", "warm_up": 0.96}, "it is 11, since the student needs"),
    ],
)
def test_a_warm_up_of_another_length_is_told_of(
    source: str, settings: dict[str, Any], said: str | None, teacher: Teacher
) -> None:
    heard = Heard()
    plan = {} if settings["preset"] == "learned" else PUBLISHED
    taught(teacher, make(source, teacher), **plan, **settings, monitor=heard)
    told = [note for note in heard.notes if "warm_up" in note]
    assert (said is None) == (not told)
    assert said is None or said in told[0]


@pytest.mark.parametrize(
    ("source", "settings", "said"),
    [
        ("qimera", {"preset": "zaq"}, True),
        ("qimera", {"preset": "zaq", "cross_entropy": 0.1}, False),
        ("zaq", {"preset": "zaq"}, False),
        # Of their losses labels are no part, whatever the source.
        ("qimera", {"preset": "ait"}, False),
    ],
)
def test_labels_that_preset_zaq_does_not_learn_from_are_told_of(
    source: str, settings: dict[str, Any], said: bool, teacher: Teacher
) -> None:
    heard = Heard()
    based = {"base": "zaq", "student_steps": 2} if source == "qimera" else {}
    taught(teacher, make(source, teacher, **based), **PUBLISHED, monitor=heard, **settings)
    assert any("cross_entropy 0.1" in note for note in heard.notes) == said


def test_a_network_without_feature_maps_cannot_be_compared_by_them() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(24, 6), nn.ReLU(), nn.Linear(6, 3))
    flat = Teacher(
        "test", net.requires_grad_(False).eval(), InputSpec((3, 2, 4), (0.5,) * 3, (0.25,) * 3)
    )
    with pytest.raises(UnsupportedModelError, match="set relations to 0 and use a source"):
        taught(flat, make("zaq", flat), preset="zaq")


def test_a_source_without_labels_is_refused_before_it_learns(teacher: Teacher) -> None:
    for preset in ("gdfq", "learned"):
        source = make("zaq", teacher)
        with pytest.raises(ImagesError, match="the cross entropy needs labels"):
            taught(teacher, source, preset=preset, warm_up=0.5, cross_entropy=1.0)
        assert source.card()["lessons"] == 0


@pytest.mark.parametrize("settings", [{"steps": 40, "warm_up": 0.99}, {"steps": 1}])
def test_a_warm_up_that_leaves_no_update_is_refused(
    settings: dict[str, Any], teacher: Teacher
) -> None:
    with pytest.raises(RecipeError, match="the student would learn nothing: "):
        taught(teacher, make("gdfq", teacher), preset="gdfq", **PUBLISHED, **settings)


def test_before_its_updates_the_student_is_asked_in_float32_and_as_it_is(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    whole = Training._say

    def say(self: Training, pair: Any, *others: Any) -> Any:
        asked.append(pair is self._learning_pair)
        return whole(self, pair, *others)

    monkeypatch.setattr(Training, "_say", say)
    # Else both are one pair.
    monkeypatch.setattr("emptyset.refiners.training.pays_to_halve", lambda *_: True)
    taught(teacher, make("adasg", teacher), preset="adasg", warm_up=0.5, **PUBLISHED)
    assert asked == [False] * (STEPS // 2) + [True] * (STEPS // 2)


@pytest.mark.parametrize("name", ["zaq", "adasg"])
def test_who_diverges_is_named(name: str, teacher: Teacher) -> None:
    wild = {"preset": name, "steps": 40, "batch_size": 4, "epoch": 40, **PUBLISHED}
    with pytest.raises(DivergedError, match=r"loss term '(logit distance|logits of the student)'"):
        taught(teacher, make(name, teacher), learning_rate=1e30, **wild)
    source = make(name, teacher, learning_rate=1e30)
    with pytest.raises(DivergedError, match=f"loss term '{name}: "):
        taught(teacher, source, learning_rate=1e-6, **wild)
