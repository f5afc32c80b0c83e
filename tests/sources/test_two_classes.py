"""A teacher of two classes: every source through a whole short training, and AdaSG's entropies."""

import copy
import math
from typing import Any

import pytest
import torch
from learning_beside_source import BATCH, PUBLISHED, STEPS, make, taught
from small_teachers import two_convolutions

from emptyset.generators.step import LessonExecution
from emptyset.images.image_source import Disagreement
from emptyset.monitor import SilentMonitor
from emptyset.teachers.teacher import Teacher

# Each source with the student's side that was published for it.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "adasg": ("adasg", {}),
    "adadfq": ("adadfq", {}),
    "zaq": ("zaq", {"learning_rate": 1e-3}),
    "texq": ("texq", {}),
    "gdfq": ("gdfq", {}),
    "autorecon": ("gdfq", {}),
    "qimera": ("gdfq", {}),
}


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return two_convolutions(classes=2)


class Heard(SilentMonitor):
    """How far the training came."""

    def __init__(self) -> None:
        self.done: list[int] = []

    def advance(self, what: str, done: int, total: int, detail: str = "") -> None:
        if what == "distill":
            self.done.append(done)


@pytest.mark.parametrize("name", CASES)
def test_student_and_source_learn_to_the_end(name: str, teacher: Teacher) -> None:
    preset, settings = CASES[name]
    source, heard = make(name, teacher), Heard()
    before = copy.deepcopy(source.generator.state_dict())
    student = taught(teacher, source, preset=preset, monitor=heard, **PUBLISHED, **settings)
    assert heard.done[-1] == STEPS
    after = source.generator.state_dict()
    assert any(not torch.equal(value, before[key]) for key, value in after.items())
    assert all(bool(torch.isfinite(value).all()) for value in after.values())
    assert source.fault() is None
    assert set(student.originals) >= {"conv1.weight", "conv2.weight", "linear.weight"}
    assert all(bool(torch.isfinite(p).all()) for p in student.program.parameters())
    drawn = source.drawn(9, seed=1)
    with torch.no_grad():
        said = student(drawn.images)
    assert said.shape == (9, 2)
    assert bool(torch.isfinite(said).all())
    if source.method.labelled:
        assert drawn.targets is not None
        wanted = drawn.targets if drawn.targets.dim() == 1 else drawn.targets.argmax(dim=1)
        assert set(wanted.tolist()) == {0, 1}


def binary_entropy(difference: float) -> float:
    """Of the softmax of two numbers that differ by this much [nat]."""
    p = 1 / (1 + math.exp(-difference))
    return -sum(q * math.log(q) for q in (p, 1 - p))


@pytest.mark.parametrize("name", ["adasg", "adadfq"])
def test_the_margin_is_that_of_the_entropy_between_two_classes(name: str, teacher: Teacher) -> None:
    """H' = (H - min H) / (log 2 - min H), H the binary entropy of what the logits differ by."""
    source = make(name, teacher)
    source._step._take(LessonExecution(False, torch.float32))
    lesson = source.next_batch(BATCH)
    student = copy.deepcopy(teacher.module).requires_grad_(True)
    with torch.no_grad():
        student.conv2.weight.mul_(0.5)
        student.linear.weight.mul_(1.7)
    said = student(lesson.images)
    judged: list[torch.Tensor] = []
    source._note = lambda _images, terms: judged.append(terms.detach())
    source.learn_from(Disagreement(lesson, lesson.teacher_logits, said))
    names = [term.name for term in source.method.terms]
    margin = judged[0][names.index("margin")].item()

    gaps = (lesson.teacher_logits - said.detach()).tolist()
    entropies = [binary_entropy(first - second) for first, second in gaps]
    assert max(entropies) <= math.log(2)
    assert max(entropies) - min(entropies) > 0.01
    config, least = source.method.config, min(entropies)
    shares = [(h - least) / (math.log(2) - least) for h in entropies]
    outside = [
        max(config.entropy_low - share, 0) + max(share - config.entropy_high, 0) for share in shares
    ]
    assert margin == pytest.approx(sum(outside) / BATCH, rel=1e-3)


@pytest.mark.parametrize("name", ["adasg", "adadfq"])
def test_two_networks_that_agree_leave_no_span_and_still_give_numbers(
    name: str, teacher: Teacher
) -> None:
    """log 2 - min H is 0 there, and 0 / 0 is no loss."""
    source = make(name, teacher)
    source._step._take(LessonExecution(False, torch.float32))
    same = source._watched._frozen.module
    for _ in range(3):
        lesson = source.next_batch(BATCH)
        said = same(lesson.images)
        assert torch.equal(said, lesson.teacher_logits)
        source.learn_from(Disagreement(lesson, lesson.teacher_logits, said))
    assert source.fault() is None
    assert all(bool(torch.isfinite(p).all()) for p in source.generator.parameters())
