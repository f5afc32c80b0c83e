"""What every registered source promises."""

import contextlib
import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from learning_beside_source import batches_of

from emptyset.errors import ImagesError
from emptyset.graph.student import Student, prepare
from emptyset.images.image_source import Lesson, LiveSource
from emptyset.monitor import SILENT, SilentMonitor, State
from emptyset.quantizers.bits import Bits
from emptyset.refiners.calibrate import Calibrate, CalibrateConfig
from emptyset.refiners.distill import DistillConfig
from emptyset.refiners.training import Training
from emptyset.registry import sources
from emptyset.teachers.teacher import Teacher

NAMES = sources.names()
BATCH = 5


def make(name: str, teacher: Teacher, seed: int = 3) -> Any:
    entry = sources.get(name)
    return entry.make(entry.config.smallest()).source(teacher, seed=seed)


CALIBRATED: list[Student] = []


@pytest.fixture
def student(tiny_teacher: Teacher) -> Student:
    """Calibrated once, to be taught."""
    if not CALIBRATED:
        CALIBRATED.append(prepare(tiny_teacher, "w4a4", plan="every_layer"))
        images = make("gdfq", tiny_teacher, 0).drawn(16, seed=0)
        Calibrate(CalibrateConfig()).refine(CALIBRATED[0], images)
    return CALIBRATED[0].copy()


class Stop(SilentMonitor):
    """Ends a training after some batches."""

    def __init__(self, after: int) -> None:
        self.left = after

    def keep(self, key: str, state: Callable[[], State], *, final: bool = False) -> None:
        self.left -= 1
        if not self.left:
            raise StopIteration


def lessons(source: Any, student: Student, count: int, after: int | None = None) -> list[Lesson]:
    """What the source gives, up to some batch, while the student learns from it."""
    config = DistillConfig(steps=count, batch_size=BATCH, held_out=0, warm_up=0.0)
    source.begin(count, BATCH, monitor=SILENT)
    given = batches_of(source)
    try:
        training = Training(student, source, config.course(Bits.parse("w4a4"), source), 0)
        with contextlib.suppress(StopIteration):
            training.run(Stop(after or count))
    finally:
        del source.next_batch
    return given


@pytest.mark.parametrize("name", NAMES)
class TestSourceContract:
    def test_it_is_a_live_source(self, name: str, tiny_teacher: Teacher) -> None:
        assert isinstance(make(name, tiny_teacher), LiveSource)

    def test_lessons_have_the_size_asked_for_and_are_new(
        self, name: str, tiny_teacher: Teacher, student: Student
    ) -> None:
        given = lessons(make(name, tiny_teacher), student, 6)
        seen = set()
        for lesson in given:
            assert lesson.images.shape == (BATCH, *tiny_teacher.input.shape)
            assert lesson.images.dtype == torch.float32
            assert bool(torch.isfinite(lesson.images).all())
            if lesson.targets is not None:
                assert lesson.targets.shape in {(BATCH,), (BATCH, 5)}
            seen |= {image.detach().numpy().tobytes() for image in lesson.images}
        assert len(seen) == 6 * BATCH

    def test_the_same_seed_gives_the_same_lessons_and_another_does_not(
        self, name: str, tiny_teacher: Teacher, student: Student
    ) -> None:
        first, again, other = (
            lessons(make(name, tiny_teacher, seed), student.copy(), 5) for seed in (3, 3, 4)
        )
        for one, same in zip(first, again, strict=True):
            assert torch.equal(one.images, same.images)
        assert not torch.equal(first[0].images, other[0].images)

    def test_it_learns(self, name: str, tiny_teacher: Teacher, student: Student) -> None:
        source = make(name, tiny_teacher)
        before = {k: v.clone() for k, v in source.generator.named_parameters()}
        lessons(source, student, 6)
        moved = [k for k, v in source.generator.named_parameters() if not torch.equal(v, before[k])]
        assert len(moved) > len(before) // 2
        assert source.fault() is None

    def test_from_a_kept_state_it_goes_on_with_the_same_lessons(
        self, name: str, tiny_teacher: Teacher, student: Student
    ) -> None:
        whole = lessons(make(name, tiny_teacher), student.copy(), 7)
        killed = make(name, tiny_teacher)
        lessons(killed, student, 7, after=3)
        # As a file would hold it: values only.
        kept = {key: value.clone().contiguous() for key, value in killed.state().items()}
        resumed = make(name, tiny_teacher, seed=9)
        resumed.begin(7, BATCH, monitor=SILENT)
        resumed.load_state(kept)
        assert torch.equal(resumed.next_batch(BATCH).images, whole[3].images)

    def test_leaves_the_teacher_as_it_was(
        self, name: str, tiny_teacher: Teacher, student: Student
    ) -> None:
        module = tiny_teacher.module
        before = copy.deepcopy(module.state_dict())
        source = make(name, tiny_teacher)
        lessons(source, student, 4)
        source.drawn(7, seed=1)
        for key, value in module.state_dict().items():
            assert torch.equal(value, before[key]), key
        assert all(p.grad is None and not p.requires_grad for p in module.parameters())
        for part in module.modules():
            assert not part.training
            assert not part._forward_hooks
            assert not part._forward_pre_hooks

    def test_leaves_the_global_random_state_alone(
        self, name: str, tiny_teacher: Teacher, student: Student
    ) -> None:
        before = torch.get_rng_state()
        source = make(name, tiny_teacher)
        lessons(source, student, 4)
        source.drawn(7, seed=1)
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("count", [2, 7, 11])
    def test_draws_exactly_the_count_asked_for_and_changes_nothing(
        self, name: str, count: int, tiny_teacher: Teacher
    ) -> None:
        source = make(name, tiny_teacher)
        source.begin(3, BATCH, monitor=SILENT)
        before = {k: v.clone() for k, v in source.state().items()}
        drawn = source.drawn(count, seed=4)
        assert drawn.images.shape == (count, *tiny_teacher.input.shape)
        assert len({image.numpy().tobytes() for image in drawn.images}) == count
        assert torch.equal(drawn.images, source.drawn(count, seed=4).images)
        assert not torch.equal(drawn.images, source.drawn(count, seed=5).images)
        for key, value in source.state().items():
            assert torch.equal(value, before[key]), key

    def test_says_in_the_history_what_was_done(self, name: str, tiny_teacher: Teacher) -> None:
        (entry,) = make(name, tiny_teacher).drawn(5, seed=9).history
        assert entry["stage"] == "synthesize"
        assert entry["method"] == name
        assert entry["seed"] == 3
        assert entry["draw_seed"] == 9
        assert entry["count"] == 5
        assert entry["teacher"] == tiny_teacher.weights_hash
        assert entry["dtype"] in ("float32", "bfloat16")
        assert json.loads(json.dumps(entry))["settings"].keys() == entry["settings"].keys()

    def test_refuses_batches_and_sets_of_one(self, name: str, tiny_teacher: Teacher) -> None:
        source = make(name, tiny_teacher)
        with pytest.raises(ImagesError, match="at least 2"):
            source.drawn(1, seed=0)
        with pytest.raises(ImagesError, match="at least 2 images in a batch"):
            source.next_batch(1)

    def test_registration_says_what_it_does(self, name: str) -> None:
        entry = sources.get(name)
        assert entry.sentence.endswith(".")
        assert entry.source
