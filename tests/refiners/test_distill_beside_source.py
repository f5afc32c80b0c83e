"""Student and source learn in one loop: who learns when, what is kept, what happens to NaN."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.errors import CollapseError, ImagesError, UnsupportedModelError
from emptyset.graph.student import Student, prepare
from emptyset.images.image_set import ImageSet
from emptyset.images.image_source import Lesson, LiveSource
from emptyset.monitor import SILENT, SilentMonitor, State
from emptyset.quantizers.bits import Bits
from emptyset.quantizers.learned_step import TrackedRange
from emptyset.refiners.distill import Distill, DistillConfig
from emptyset.refiners.finite_losses import DivergedError
from emptyset.refiners.training import Training
from emptyset.registry import sources
from emptyset.teachers.teacher import InputSpec, Teacher, hash_of_weights

BITS = Bits.parse("w4a4")
PUBLISHED = {"plan": "every_layer", "batch_norm": "frozen"}
# Every kind of source with every kind of loop.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gdfq, learned": ("gdfq", {}, {"plan": "integer"}),
    "gdfq, published": ("gdfq", {}, {**PUBLISHED, "preset": "published"}),
    "gdfq, gdfq": ("gdfq", {}, {**PUBLISHED, "preset": "gdfq", "warm_up": 0.25}),
    "gdfq, legacy": ("gdfq", {}, {**PUBLISHED, "preset": "gdfq", "warm_up": 0.25, "legacy": True}),
    "qimera, mixed": ("qimera", {}, {**PUBLISHED, "preset": "gdfq", "mixing": "mixup"}),
    "qimera, cropped": ("qimera", {}, {**PUBLISHED, "preset": "gdfq", "augmentation": "crop"}),
    "autorecon, gdfq": ("autorecon", {}, {**PUBLISHED, "preset": "gdfq"}),
    "zaq, zaq": ("zaq", {}, {**PUBLISHED, "preset": "zaq", "learning_rate": 1e-3}),
    "zaq, learned": ("zaq", {}, {"plan": "every_layer"}),
    "qimera on zaq": (
        "qimera",
        {"base": "zaq", "student_steps": 2},
        {**PUBLISHED, "preset": "zaq", "learning_rate": 1e-3, "cross_entropy": 0.1},
    ),
    "adasg, adasg": ("adasg", {}, {**PUBLISHED, "preset": "adasg"}),
    "adadfq, mixed": ("adadfq", {}, {**PUBLISHED, "preset": "adadfq", "mixing": "cutmix"}),
    "adadfq, learned": ("adadfq", {}, {"plan": "every_layer"}),
    "texq, texq": ("texq", {}, {**PUBLISHED, "preset": "texq"}),
    "texq, learned": ("texq", {}, {"plan": "integer"}),
    "qimera, ait": ("qimera", {}, {**PUBLISHED, "preset": "ait", "crossing": 0.05}),
    "gdfq, searched": (
        "gdfq",
        {},
        {**PUBLISHED, "preset": "ait", "crossing": 0.05, "inundation": "exact"},
    ),
    "gdfq, learned and inundated": (
        "gdfq",
        {},
        {"plan": "every_layer", "inundation": "quantile", "crossing": 0.01},
    ),
}
STEPS, BATCH = 12, 6


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 7, 3, 2, bias=False), nn.BatchNorm2d(7)
        self.linear = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.linear(x.mean((2, 3)))


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    random = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        net = Net()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=random))
        for norm in (net.bn1, net.bn2):
            norm.weight.fill_(1.0)
            norm.running_mean.copy_(0.3 * torch.randn(norm.num_features, generator=random))
    spec = InputSpec((3, 8, 12), (0.5,) * 3, (0.25,) * 3)
    net.requires_grad_(False).eval()
    return Teacher("test", net, spec, weights_hash=hash_of_weights(net))


def make(name: str, teacher: Teacher, **settings: Any) -> Any:
    entry = sources.get(name)
    smallest = vars(entry.config.smallest()) if settings else {}
    config = entry.config(**smallest | settings) if settings else entry.config.smallest()
    return entry.make(config).source(teacher, seed=3)


def taught(
    teacher: Teacher,
    source: Any,
    *,
    plan: str = "every_layer",
    batch_norm: str = "fold",
    monitor: Any = SILENT,
    evaluate: Callable[[Student], float] | None = None,
    student: Student | None = None,
    **settings: Any,
) -> Student:
    student = student or prepare(teacher, BITS, plan=plan, batch_norm=batch_norm)
    config = {"steps": STEPS, "batch_size": BATCH, "epoch": 3, "held_out": 8, **settings}
    refiner = Distill(DistillConfig(**config))
    refiner.refine(student, source, seed=7, monitor=monitor, evaluate=evaluate)
    return student


class KilledError(Exception):
    pass


class Disk(SilentMonitor):
    """Keeps every state as a file would, and is killed after some."""

    def __init__(self, limit: int) -> None:
        self.states: dict[str, State] = {}
        self.limit, self.seen = limit, list[int]()

    def advance(self, what: str, done: int, total: int, detail: str = "") -> None:
        if what == "texq":  # images of its first stage
            return
        assert (what, total) == ("distill", STEPS)
        self.seen.append(done)

    def keep(self, key: str, state: Callable[[], State], *, final: bool = False) -> None:
        self.states[key] = {name: v.clone().contiguous() for name, v in state().items()}
        if not key.startswith("distill"):
            return
        self.limit -= 1
        if self.limit == 0:
            raise KilledError

    def restore(self, key: str) -> State | None:
        return self.states.get(key)


WHOLE: dict[str, tuple[Any, dict[str, Tensor], Student]] = {}


def whole_run(case: str, teacher: Teacher) -> tuple[Any, dict[str, Tensor], Student]:
    """The trained source, its network as it began, and the student; run once."""
    if case not in WHOLE:
        name, own, settings = CASES[case]
        source = make(name, teacher, **own)
        before = {k: v.clone() for k, v in source.generator.state_dict().items()}
        WHOLE[case] = source, before, taught(teacher, source, **settings)
    return WHOLE[case]


@pytest.mark.parametrize("case", CASES)
class TestEveryKind:
    def test_both_learn_and_float_mode_stays_the_teacher(self, case: str, teacher: Teacher) -> None:
        source, before, student = whole_run(case, teacher)
        assert any(not torch.equal(v, before[k]) for k, v in source.generator.state_dict().items())
        learnt = [
            path
            for path, value in student.originals.items()
            if not torch.equal(value, student.program.get_parameter(path))
        ]
        assert {"conv1.weight", "conv2.weight", "linear.weight"} <= set(learnt)
        images = source.drawn(5, seed=0).images
        with student.float_mode():
            expected = teacher.module(images)
            torch.testing.assert_close(student(images), expected, atol=1e-5, rtol=0)
        assert not any(quantizer.trained for quantizer in student.quantizers.values())
        assert all(bool(q.calibrated) for q in student.quantizers.values())

    def test_killed_it_goes_on_and_ends_the_same(self, case: str, teacher: Teacher) -> None:
        source, _, whole = whole_run(case, teacher)
        name, own, settings = CASES[case]
        disk = Disk(limit=2 if "gdfq, learned" in case or case == "texq, learned" else 8)
        with pytest.raises(KilledError):
            taught(teacher, make(name, teacher, **own), monitor=disk, **settings)
        done, disk.seen = disk.seen[-1], []
        again = make(name, teacher, **own)
        resumed = taught(teacher, again, monitor=disk, **settings)
        assert disk.seen == list(range(done + 1, STEPS + 1))
        for key, value in resumed.state_dict().items():
            assert torch.equal(value, whole.state_dict()[key]), key
        for key, value in again.generator.state_dict().items():
            assert torch.equal(value, source.generator.state_dict()[key]), key
        assert resumed.records == whole.records


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
        steps=20,
        warm_up=0.5,
        held_out=0,
        precision="float32",
    )
    counting.stop()
    # One image to see whether compiling pays. Of the generator's 10 lessons ranges are tracked in
    # the last.
    assert counting.student == 1 + 1 + 10
    # The source's own copy said it all.
    assert counting.teacher == 0


@pytest.mark.parametrize(("legacy", "tracked"), [(False, [8, 9, 10, 11]), (True, [0, 1, 2, 3])])
def test_ranges_are_tracked_at_the_end_of_the_warm_up_or_as_released(
    legacy: bool, tracked: list[int], teacher: Teacher
) -> None:
    student = prepare(teacher, BITS, **PUBLISHED)
    source = make("gdfq", teacher)
    config = DistillConfig(preset="gdfq", steps=400, warm_up=0.03, batch_size=BATCH, legacy=legacy)
    course = config.course(BITS, source)
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
    parameters = dict(training._parameters)
    given: list[Lesson] = []
    whole = source.next_batch
    source.next_batch = lambda size: given.append(whole(size)) or given[-1]
    with training._learning():
        training._update(0)
        training._update(1)
        before = {k: v.detach().clone().requires_grad_() for k, v in parameters.items()}
        training._update(2)
        after = {k: v.detach().clone() for k, v in parameters.items()}
        # The same update once more, from the same weights, with torch's own parts.
        with torch.no_grad():
            for key, value in parameters.items():
                value.copy_(before[key])
        training._learners.publish()
        lesson = given[-1]
        ours = student(lesson.images)
        theirs = F.softmax(lesson.teacher_logits / 20, 1)
        divergence = theirs * (theirs.log() - F.log_softmax(ours / 20, 1))
        loss = F.cross_entropy(ours, lesson.targets) + 400 * divergence.mean()
        gradients = torch.autograd.grad(loss, list(parameters.values()))
    for (key, value), gradient in zip(before.items(), gradients, strict=True):
        decayed = gradient + 1e-4 * value.detach()
        buffer = training._optimizer.state[parameters[key]]["momentum_buffer"]
        expected = value.detach() - 0.01 * (decayed + 0.9 * buffer)
        torch.testing.assert_close(after[key], expected, atol=1e-6, rtol=1e-4, msg=key)


def test_adasgs_update_is_the_published_one_and_takes_one_forward_of_each(
    teacher: Teacher,
) -> None:
    """SGD on T² times the negative entropy of the softened difference, by torch's own parts."""
    student, source = prepare(teacher, BITS, **PUBLISHED), make("adasg", teacher)
    config = DistillConfig(preset="adasg", steps=40, batch_size=BATCH, learning_rate=0.01)
    training = Training(student, source, config.course(BITS, source), 0)
    parameters = dict(training._parameters)
    given: list[Lesson] = []
    whole = source.next_batch
    source.next_batch = lambda size: given.append(whole(size)) or given[-1]
    with training._learning():
        training._update(0)
        counting = Counting(student)
        training._learning_pair = training._pair
        before = {k: v.detach().clone() for k, v in parameters.items()}
        training._update(1)
        counting.stop()
        assert (counting.student, counting.teacher) == (1, 0)
        after = {k: v.detach().clone() for k, v in parameters.items()}
        with torch.no_grad():
            for key, value in parameters.items():
                value.copy_(before[key])
        training._learners.publish()
        ours = student(given[-1].images.detach())
        log_p = F.log_softmax((given[-1].teacher_logits - ours) / 20, 1)
        loss = 400 * (log_p.exp() * log_p).sum(1).mean()
        gradients = torch.autograd.grad(loss, list(parameters.values()))
    for (key, value), gradient in zip(before.items(), gradients, strict=True):
        decayed = gradient + 1e-4 * value
        # Its first update: the buffer is the gradient.
        expected = value - 0.01 * (decayed + 0.9 * decayed)
        torch.testing.assert_close(after[key], expected, atol=1e-6, rtol=1e-3, msg=key)


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


def test_soft_labels_reach_the_students_cross_entropy(teacher: Teacher) -> None:
    source = make("qimera", teacher, superposed_share=1.0)
    student = taught(teacher, source, **PUBLISHED, preset="gdfq", distillation=0.0)
    assert student.originals


def test_unlabelled_images_and_a_cross_entropy_exclude_each_other(teacher: Teacher) -> None:
    with pytest.raises(ImagesError, match="Set cross_entropy to 0"):
        taught(teacher, make("zaq", teacher), **PUBLISHED, preset="gdfq")


def test_zaq_learns_its_loss_from_stored_images_too(teacher: Teacher) -> None:
    random = torch.Generator().manual_seed(1)
    images = ImageSet(torch.randn(20, 3, 8, 12, generator=random))
    student = taught(teacher, images, **PUBLISHED, preset="zaq", learning_rate=1e-3)
    assert student.originals
    assert student.records == []


def test_a_network_without_feature_maps_cannot_be_compared_by_them() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(24, 6), nn.ReLU(), nn.Linear(6, 3))
    flat = Teacher(
        "test", net.requires_grad_(False).eval(), InputSpec((3, 2, 4), (0.5,) * 3, (0.25,) * 3)
    )
    with pytest.raises(UnsupportedModelError, match="set relations to 0 and use a source"):
        taught(flat, make("zaq", flat), preset="zaq")


# Last and best -------------------------------------------------------------------------------


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


def test_by_itself_the_best_is_who_agrees_most_on_the_generators_images(teacher: Teacher) -> None:
    source = make("gdfq", teacher)
    student = taught(teacher, source, preset="learned", warm_up=0.0, held_out=16)
    (record,) = student.records
    images = source.drawn(16, seed=7 * 1_000_003 + 2).images
    same = student(images).argmax(1) == teacher.module(images).argmax(1)
    assert record["last"]["score"] == pytest.approx(float(same.float().mean()))
    assert "16 images of the generator" in record["judged_by"]


def test_nothing_is_judged_where_nothing_is_held_out(teacher: Teacher) -> None:
    assert taught(teacher, make("gdfq", teacher), held_out=0).records == []


# Divergence ----------------------------------------------------------------------------------


class Poisoned:
    """A source that makes the teacher say what is no number, from some lesson on."""

    def __init__(self, source: LiveSource, first: int) -> None:
        self._source, self._left = source, first
        self.needs_student, self.needs_features = source.needs_student, source.needs_features

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def begin(self, lessons: int, batch_size: int, *, monitor: Any) -> None:
        self._source.begin(lessons, batch_size, monitor=monitor)

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

    def fault(self) -> str | None:
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


# Courses -------------------------------------------------------------------------------------


def test_presets_are_the_published_numbers(teacher: Teacher) -> None:
    gdfq = DistillConfig(preset="gdfq").course(BITS)
    assert (gdfq.steps, gdfq.warm_up, gdfq.range_steps) == (80_000, 800, 800)
    assert (gdfq.distillation, gdfq.kd_reduction, gdfq.cross_entropy) == (1.0, "mean", 1.0)
    rates = [gdfq.share_of_rate(n) for n in (0, 19_999, 20_000, 40_000, 60_000)]
    assert rates == pytest.approx([1, 1, 0.1, 0.01, 0.001])
    large = DistillConfig(preset="gdfq", warm_up=0.125).course(BITS)
    assert (large.warm_up, large.range_steps) == (10_000, 800)
    assert [large.tracks(n) for n in (0, 9_199, 9_200, 9_999, 10_000)] == [0, 0, 1, 1, 0]
    released = DistillConfig(preset="gdfq", warm_up=0.125, legacy=True).course(BITS)
    assert [released.tracks(n) for n in (0, 799, 800, 9_999)] == [1, 1, 0, 0]
    zaq = DistillConfig(preset="zaq").course(BITS)
    assert (zaq.steps, zaq.warm_up, zaq.learning_rate, zaq.weight_decay) == (108_000, 0, 0.1, 5e-4)
    assert (zaq.logit_distance, zaq.relations, zaq.distillation, zaq.nesterov) == (1, 1, 0, False)
    rates = [zaq.share_of_rate(n) for n in (35_999, 36_000, 72_000)]
    assert rates == pytest.approx([1, 0.1, 0.01])
    for name in ("adasg", "adadfq"):
        adaptive = DistillConfig(preset=name).course(BITS)
        assert (adaptive.steps, adaptive.warm_up, adaptive.flatness) == (80_000, 800, 1.0)
        assert (adaptive.distillation, adaptive.cross_entropy, adaptive.temperature) == (0, 0, 20)
    texq = DistillConfig(preset="texq").course(BITS)
    assert (texq.mixing, texq.cross_entropy, texq.kd_reduction) == ("mixup_images", 0, "batch_mean")
    own = DistillConfig(preset="gdfq", milestones=(0.5,)).course(BITS)
    assert [own.share_of_rate(n) for n in (39_999, 40_000)] == pytest.approx([1, 0.1])


def test_beside_a_source_the_learned_preset_waits_for_it(teacher: Teacher) -> None:
    alone = DistillConfig().course(BITS)
    beside = DistillConfig().course(BITS, make("gdfq", teacher))
    assert (alone.steps, alone.warm_up, alone.augmentation) == (500, 0, "shift")
    assert (beside.steps, beside.warm_up, beside.augmentation) == (2000, 500, "none")
    assert [beside.share_of_rate(n) for n in (500, 1250)] == pytest.approx([1, 0.5])
    asked = DistillConfig().course(BITS, make("zaq", teacher))
    assert asked.warm_up == 0


def test_a_source_that_asks_the_student_is_answered_from_the_first_lesson(
    teacher: Teacher,
) -> None:
    config = DistillConfig(preset="gdfq", cross_entropy=0.0, steps=400, warm_up=0.1)
    course = config.course(BITS, make("zaq", teacher))
    assert [n for n in range(400) if course.tracks(n)] == list(range(40))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warm_up": 1.0}, "warm_up is a share"),
        ({"milestones": (0.5, 1.5)}, "milestones are shares"),
        ({"keep": "first"}, "keep must be one of last, best"),
        ({"epoch": 0}, "epoch must be above 0"),
        ({"held_out": 1}, "held_out must be 0 or at least 2"),
        ({"relations": -1.0}, "relations must not be negative"),
        ({"distillation": 0.0}, "nothing to learn"),
        ({"preset": "adasg", "flatness": 0.0}, "nothing to learn"),
        ({"flatness": -1.0}, "flatness must not be negative"),
        ({"mixing": "blend"}, "mixing must be one of none, mixup, cutmix"),
        ({"preset": "gdfq", "mixing": "cutmix_images"}, "or mixing to 'cutmix'"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillConfig(**settings)


def test_tracked_ranges_move_only_while_tracking(teacher: Teacher) -> None:
    student = prepare(teacher, BITS, plan="every_layer")
    quantizer = next(q for q in student.quantizers.values() if q.axis is None)
    learner = TrackedRange(quantizer, legacy=False)
    learner(torch.tensor([-1.0, 2.0]))
    kept = learner.state()
    other = TrackedRange(quantizer, legacy=False)
    other.load_state(kept)
    assert other.state().keys() == kept.keys()
