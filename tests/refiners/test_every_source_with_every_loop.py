"""Every kind of source in every kind of loop: both learn, and a killed run ends the same."""

from typing import Any

import pytest
import torch
from killed_run import Disk, KilledError
from learning_beside_source import PUBLISHED, STEPS, make, taught
from small_teachers import two_convolutions
from torch import Tensor

from emptyset.graph.student import Student
from emptyset.teachers.teacher import Teacher

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
    "zaq, legacy": (
        "zaq",
        {},
        {**PUBLISHED, "preset": "zaq", "learning_rate": 1e-3, "legacy": True},
    ),
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


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return two_convolutions()


class TrainingDisk(Disk):
    """Hears how many batches are done, and is killed after some states of the training."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit, "distill")

    def advance(self, what: str, done: int, total: int, detail: str = "") -> None:
        if what == "texq":  # images of its first stage
            return
        assert (what, total) == ("distill", STEPS)
        self.seen.append(done)


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
        disk = TrainingDisk(limit=2 if "gdfq, learned" in case or case == "texq, learned" else 8)
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
