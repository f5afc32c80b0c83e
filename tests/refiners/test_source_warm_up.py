"""The batches before a student's first update: the source's schedule, and the first ranges."""

from typing import Any

import pytest
import torch
from learning_beside_source import BITS, PUBLISHED, make, taught
from small_teachers import two_convolutions

from emptyset.graph.student import Student, prepare
from emptyset.images.image_set import ImageSet
from emptyset.monitor import SilentMonitor
from emptyset.refiners.calibrate import Calibrate, CalibrateConfig
from emptyset.teachers.teacher import Teacher


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return two_convolutions()


class Rates(SilentMonitor):
    """Remembers the source's learning rate in every batch."""

    def __init__(self, source: Any) -> None:
        self.source, self.seen = source, []

    def advance(self, what: str, done: int, total: int, detail: str = "") -> None:
        assert (what, done, total) == ("distill", len(self.seen) + 1, 20)
        self.seen.append(self.source._optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gdfq", {"preset": "learned", "warm_up": 0.5}),
        ("gdfq", {**PUBLISHED, "preset": "gdfq", "warm_up": 0.5}),
        ("zaq", {**PUBLISHED, "preset": "zaq", "learning_rate": 1e-3}),
    ],
)
def test_a_sources_rate_falls_after_shares_of_all_batches(
    name: str, settings: dict[str, Any], teacher: Teacher
) -> None:
    source = make(name, teacher, learning_rate=3e-3, milestones=(0.2, 0.7))
    rates = Rates(source)
    taught(teacher, source, monitor=rates, steps=20, **settings)
    assert rates.seen == pytest.approx([3e-3] * 4 + [3e-4] * 10 + [3e-5] * 6)


def grids(student: Student) -> dict[str, tuple[Any, Any]]:
    return {n: (q.scale.tolist(), q.zero_point.tolist()) for n, q in student.quantizers.items()}


def calibrated(teacher: Teacher, images: ImageSet) -> Student:
    student = prepare(teacher, BITS, plan="every_layer")
    Calibrate(CalibrateConfig()).refine(student, images)
    return student


@pytest.mark.parametrize(("name", "lessons"), [("gdfq", 6), ("adasg", 0)])
def test_first_ranges_are_those_of_256_images_that_the_source_makes_by_then(
    name: str, lessons: int, teacher: Teacher
) -> None:
    source = make(name, teacher)
    given: list[tuple[int, ImageSet]] = []
    whole = source.drawn

    def drawn(count: int, *, seed: int) -> ImageSet:
        given.append((source.card()["lessons"], whole(count, seed=seed)))
        return given[-1][1]

    source.drawn = drawn
    student = taught(teacher, source, warm_up=0.5, held_out=0, step_learning_rate=0.0)
    ((when, images),) = given
    assert when == lessons
    assert len(images) == 256
    assert grids(student) == grids(calibrated(teacher, images))


def test_ranges_that_a_student_has_already_are_left_as_they_are(teacher: Teacher) -> None:
    random = torch.Generator().manual_seed(1)
    student = calibrated(teacher, ImageSet(torch.randn(9, 3, 8, 12, generator=random)))
    before = grids(student)
    source = make("gdfq", teacher)
    taught(teacher, source, student=student, warm_up=0.5, step_learning_rate=0.0)
    assert grids(student) == before
    assert source.card()["lessons"] == 12
