"""Plan `integer` with a bias that int32 can just not hold: what one block learns raises the scales
of the next one, and nothing of what was only tried may stay."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.graph.blocks import find_blocks
from emptyset.graph.student import Student
from emptyset.images.image_set import ImageSet
from emptyset.monitor import SILENT
from emptyset.reconstruction.chain import reconstruct
from emptyset.reconstruction.config import Course, ReconstructionConfig
from emptyset.reconstruction.notes import Told
from emptyset.reconstruction.outcome import Snapshot, install, present_outcome
from emptyset.reconstruction.units import units_of

RAISED = "second.weight"


class Chain(nn.Module):
    """Three convolutions and a linear, no branch; channel 3 of the second has tiny weights."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"first": (3, 6), "second": (6, 6), "third": (6, 4)}
        for name, (inputs, outputs) in sizes.items():
            setattr(self, name, nn.Conv2d(inputs, outputs, 3, bias=False))
            setattr(self, f"norm_{name}", nn.BatchNorm2d(outputs))
        self.linear = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        for name in ("first", "second", "third"):
            x = F.relu(getattr(self, f"norm_{name}")(getattr(self, name)(x)))
        return self.linear(x.mean((2, 3)))


@pytest.fixture
def student(teacher_of: Callable[..., Any], student_of: Callable[..., Student]) -> Student:
    teacher = teacher_of(Chain())
    with torch.no_grad():
        teacher.module.second.weight[3] *= 1e-9
        teacher.module.norm_second.bias[3] = 5.0
    return student_of(teacher, "w4a4", "integer")


def course_of(patience: int = 2, **changed: Any) -> Course:
    config = ReconstructionConfig(
        steps=20, batch_size=6, check_every=2, patience=patience, warm_up=0.0,
        rounding_learning_rate=5e-2,
    )  # fmt: skip
    course = Course(
        name="test", config=config, steps=20, weight_scale_rate=1e-3, activation_scale_rate=5e-2,
        relative_scales=True, inputs="mixed", kept=0.5, mask="value", order="epochs",
    )  # fmt: skip
    return replace(course, **changed)


def learn(student: Student, images: ImageSet, course: Course, monitor: Any = SILENT) -> list[Told]:
    return reconstruct(student, images, course, seed=3, monitor=monitor)


def differing(one: Student, other: Student) -> list[str]:
    found, expected = one.state_dict(), other.state_dict()
    assert found.keys() == expected.keys()
    return [name for name, value in found.items() if not torch.equal(value, expected[name])]


def test_what_a_block_learns_raises_the_next_ones_scale(student: Student, images: ImageSet) -> None:
    learnt = student.copy()
    learn(learnt, images, course_of())
    ratio = learnt.quantizers[RAISED].scale / student.quantizers[RAISED].scale
    inputs = "network.relu.output"
    moved = learnt.quantizers[inputs].scale / student.quantizers[inputs].scale
    # The scale of weights times that of inputs must not fall.
    assert moved < 0.98
    assert ratio[3] * moved > 1 - 1e-4


def test_killed_at_any_moment_it_ends_the_same(
    student: Student, images: ImageSet, disk: Any, killed: Any
) -> None:
    whole, monitor = student.copy(), disk()
    told = learn(whole, images, course_of(), monitor)
    for limit in range(2, monitor.kept - 1, 4):
        resumed, one = student.copy(), disk(limit)
        with pytest.raises(killed):
            learn(resumed, images, course_of(), one)
        resumed, one.limit = student.copy(), None
        assert learn(resumed, images, course_of(), one) == told
        assert differing(resumed, whole) == [], limit


def test_what_was_learnt_in_vain_raises_nothing(student: Student, images: ImageSet) -> None:
    learnt, plain = student.copy(), student.copy()
    # Scales so large or small in the end that nothing is left.
    vain = course_of(patience=0, weight_scale_rate=2.0, activation_scale_rate=0.3)
    assert not any(one.kept for one in learn(learnt, images, vain))
    learn(plain, images, course_of(steps=0))
    assert differing(learnt, plain) == []


@pytest.mark.parametrize("learnt", [False, True])
def test_a_snapshot_of_one_block_undoes_what_it_raised_in_the_next(
    learnt: bool, student: Student, images: ImageSet
) -> None:
    if learnt:
        learn(student, images, course_of(patience=0))
    before = student.copy()
    (unit,) = units_of(student, find_blocks(student)[0], by_layer=False)
    snapshot, outcome = Snapshot.of(student, unit), present_outcome(student, unit)
    outcome["network.relu.output|scale"] *= 0.25
    install(student, outcome)
    found, expected = student.quantizers[RAISED], before.quantizers[RAISED]
    assert found.scale[3] == pytest.approx(4 * expected.scale[3].item(), rel=1e-4)
    if learnt:
        # The codes of the other channels are still the learnt ones.
        others = [channel for channel in range(6) if channel != 3]
        assert found.rounding is not None
        assert torch.equal(found.rounding[others], expected.rounding[others])
        assert torch.equal(found.base_codes[others], expected.base_codes[others])
    snapshot.restore(student)
    assert differing(student, before) == []
