"""Last and best student are recorded; what diverged ends with the last good one."""

from typing import Any

import pytest
import torch
from learning_beside_source import BITS, PUBLISHED, make, taught
from small_teachers import two_convolutions
from torch import Tensor

from emptyset.errors import CollapseError
from emptyset.graph.student import Student, prepare
from emptyset.images.image_set import ImageSet
from emptyset.images.image_source import Fault, Lesson, LiveSource
from emptyset.monitor import SilentMonitor, State
from emptyset.refiners.finite_losses import DivergedError
from emptyset.teachers.teacher import Teacher


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return two_convolutions()


def test_last_and_best_are_recorded_and_the_one_asked_for_is_the_result(teacher: Teacher) -> None:
    scores = iter([0.5, 0.9, 0.7, 0.6])
    seen: list[dict[str, Tensor]] = []

    def evaluate(student: Student) -> float:
        assert not any(quantizer.trained for quantizer in student.quantizers.values())
        seen.append(student.state_dict())
        return next(scores)

    for keep, expected in (("last", 3), ("best", 1)):
        scores, seen = iter([0.5, 0.9, 0.7, 0.6]), []
        student = taught(
            teacher, make("gdfq", teacher), evaluate=evaluate, keep=keep, preset="learned",
            warm_up=0.0,
        )  # fmt: skip
        (record,) = student.records
        assert record["last"] == {"update": 12, "score": 0.6}
        assert record["best"] == {"update": 6, "score": 0.9}
        assert [look["update"] for look in record["epochs"]] == [3, 6, 9, 12]
        assert record["judged_by"] == "the given evaluation"
        assert record["kept"] == keep
        for path in student.originals:
            assert torch.equal(student.state_dict()[path], seen[expected][path]), path
        for name in student.quantizers:
            key = f"quantizer:{name}:scale"
            assert torch.equal(student.state_dict()[key], seen[expected][key]), key


class Looking(SilentMonitor):
    """Keeps the student as it is at every look."""

    def __init__(self, student: Student) -> None:
        self.student, self.states = student, list[dict[str, Tensor]]()

    def advance(self, what: str, done: int, total: int, detail: str = "") -> None:
        if done % 3 == 0:
            self.states.append(self.student.state_dict())


@pytest.mark.parametrize("keep", ["last", "best"])
def test_by_itself_the_best_is_who_agrees_most_on_the_generators_images(keep: str) -> None:
    """So large a learning rate makes the student worse in the end."""
    even = two_convolutions(every_class=True)
    student, judged = (prepare(even, BITS, plan="every_layer") for _ in range(2))
    source, monitor = make("gdfq", even), Looking(student)
    drawn: list[Tensor] = []
    whole = source.drawn

    def remembered(count: int, *, seed: int) -> ImageSet:
        made = whole(count, seed=seed)
        drawn.append(made.images)
        return made

    source.drawn = remembered
    taught(
        even, source, student=student, monitor=monitor, warm_up=0.0, held_out=97, keep=keep,
        learning_rate=0.03,
    )  # fmt: skip

    def agreement(state: dict[str, Tensor], images: Tensor) -> float:
        judged.load_state_dict(state)
        same = judged(images).argmax(1) == even.module(images).argmax(1)
        return float(same.float().mean())

    looks, best = [images for images in drawn if len(images) == 97], 0
    assert len(looks) == len(monitor.states) == 4
    scores = []
    for number, (state, images) in enumerate(zip(monitor.states, looks, strict=True)):
        scores.append(agreement(state, images))
        if scores[-1] >= agreement(monitor.states[best], images):
            best = number
    assert best < 3
    (record,) = student.records
    assert [look["score"] for look in record["epochs"]] == pytest.approx(scores)
    assert record["best"] == record["epochs"][best]
    assert record["last"] == record["epochs"][3]
    assert "97 images of the generator" in record["judged_by"]
    kept = monitor.states[best if keep == "best" else 3]
    for name, value in kept.items():
        assert torch.equal(student.state_dict()[name], value), name


def test_nothing_is_judged_where_nothing_is_held_out_or_images_are_stored(
    teacher: Teacher,
) -> None:
    assert taught(teacher, make("gdfq", teacher), held_out=0).records == []
    images = torch.randn(20, 3, 8, 12, generator=torch.Generator().manual_seed(1))
    assert taught(teacher, ImageSet(images)).records == []


class Poisoned:
    """A source that makes the teacher say what is no number, from some lesson on."""

    def __init__(self, source: LiveSource, first: int) -> None:
        self._source, self._left = source, first
        self.needs_student, self.needs_features = source.needs_student, source.needs_features
        self.labelled = source.labelled

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def begin(self, lessons: int, batch_size: int, *, precision: str, monitor: Any) -> None:
        self.precision = precision
        self._source.begin(lessons, batch_size, precision=precision, monitor=monitor)

    def next_batch(self, size: int) -> Lesson:
        lesson = self._source.next_batch(size)
        self._left -= 1
        if self._left >= 0:
            return lesson
        assert lesson.teacher_logits is not None
        return Lesson(lesson.images, lesson.targets, lesson.teacher_logits * float("nan"))

    def learn_from(self, outcome: Any) -> None: ...
    def drawn(self, count: int, *, seed: int) -> ImageSet:
        return self._source.drawn(count, seed=seed)

    def fault(self) -> Fault | None:
        return self._source.fault()

    def state(self) -> State:
        return self._source.state()

    def load_state(self, state: State) -> None:
        self._source.load_state(state)


def test_a_loss_that_is_not_finite_stops_training_with_the_last_good_student(
    teacher: Teacher,
) -> None:
    good: list[dict[str, Tensor]] = []

    def evaluate(student: Student) -> float:
        good.append(student.state_dict())
        return 0.0

    student = prepare(teacher, BITS, **PUBLISHED)
    source = Poisoned(make("gdfq", teacher), first=8)
    assert isinstance(source, LiveSource)
    with pytest.raises(DivergedError, match="loss term 'distillation' is NaN") as caught:
        taught(teacher, source, student=student, preset="gdfq", evaluate=evaluate)
    assert caught.value.kept
    assert "as it was after batch 6" in str(caught.value)
    assert "Lower learning_rate" in str(caught.value)
    for path in student.originals:
        assert torch.equal(student.state_dict()[path], good[-1][path]), path
    assert not any(p.requires_grad for p in student.program.parameters())
    assert not any(quantizer.trained for quantizer in student.quantizers.values())


@pytest.mark.parametrize(("preset", "warm_up"), [("gdfq", 0.5), ("learned", 0.5)])
def test_the_source_computes_in_the_precision_asked_for(
    preset: str, warm_up: float, teacher: Teacher
) -> None:
    told = PUBLISHED if preset == "gdfq" else {}
    source = Poisoned(make("gdfq", teacher), first=100)
    taught(teacher, source, preset=preset, warm_up=warm_up, precision="bfloat16", **told)
    assert source.precision == "bfloat16"


def test_before_anything_was_good_the_student_stays_as_it_was(teacher: Teacher) -> None:
    student = prepare(teacher, BITS, **PUBLISHED)
    before = student.state_dict()
    with pytest.raises(DivergedError) as caught:
        taught(teacher, Poisoned(make("gdfq", teacher), first=1), student=student, preset="gdfq")
    assert not caught.value.kept
    assert student.originals == {}
    after = student.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_a_term_of_the_generator_that_is_not_finite_is_named(teacher: Teacher) -> None:
    source = make("gdfq", teacher)
    with torch.no_grad():
        source.generator.backbone.conv3.bias.fill_(float("nan"))
    with pytest.raises(CollapseError, match="'gdfq: cross entropy' is NaN"):
        taught(teacher, source, **PUBLISHED, preset="gdfq", warm_up=0.5)
    broken = make("gdfq", teacher)
    with torch.no_grad():
        broken.generator.backbone.conv3.bias.fill_(float("nan"))
    with pytest.raises(CollapseError, match="the source diverged: its loss term 'gdfq: cross"):
        taught(teacher, broken, preset="learned", warm_up=0.5)


class Ruined(Poisoned):
    """A source whose weights its own last lessons ruin, before any image shows it."""

    def next_batch(self, size: int) -> Lesson:
        lesson = self._source.next_batch(size)
        self._left -= 1
        if self._left < 0:
            with torch.no_grad():
                self._source.generator.backbone.conv3.bias.fill_(float("nan"))
        return lesson


def test_a_generator_that_its_last_lesson_ruined_is_named_with_the_last_good_student(
    teacher: Teacher,
) -> None:
    student = prepare(teacher, BITS, **PUBLISHED)
    # A look after every third of twelve batches; the eighth lesson is the last before the third.
    source = Ruined(make("gdfq", teacher), first=8)
    with pytest.raises(DivergedError, match="gradient of the generator's weights") as caught:
        taught(teacher, source, student=student, preset="gdfq", held_out=8)
    assert caught.value.kept
    assert "as it was after batch 6" in str(caught.value)
    assert all(bool(p.isfinite().all()) for p in student.program.parameters())


class Onlooker(SilentMonitor):
    """Shows the student other images between two updates, as a person who measures it would."""

    def __init__(self, student: Student) -> None:
        self.student = student

    def advance(self, what: str, done: int, total: int, detail: str = "") -> None:
        with torch.no_grad():
            self.student(50 * torch.ones(3, *self.student.teacher.input.shape))


@pytest.mark.parametrize(("source", "preset"), [("zaq", "zaq"), ("gdfq", "gdfq")])
def test_what_others_show_the_student_moves_no_range(
    source: str, preset: str, teacher: Teacher
) -> None:
    options: dict[str, Any] = {"preset": preset, "warm_up": 0.5, "learning_rate": 1e-3}

    def trained(looks: bool) -> dict[str, Tensor]:
        student = prepare(teacher, BITS, **PUBLISHED)
        monitor = Onlooker(student) if looks else SilentMonitor()
        taught(teacher, make(source, teacher), student=student, monitor=monitor, **options)
        return student.state_dict()

    alone, watched = trained(False), trained(True)
    assert all(torch.equal(alone[name], watched[name]) for name in alone)
