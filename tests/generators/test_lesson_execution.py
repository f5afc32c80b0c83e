"""How a lesson is computed: traced whole, in which precision, and where compiling fails."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from counting_teacher import BATCH, CountingNet, made, teacher_of

from emptyset.generators.step import LessonExecution
from emptyset.monitor import SilentMonitor
from emptyset.teachers.teacher import Teacher


@pytest.fixture
def teacher() -> Teacher:
    with torch.random.fork_rng(devices=[]):
        return teacher_of(CountingNet())


@pytest.mark.slow
def test_the_traced_step_learns_the_same(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as for compiling, hooks and all; what inductor makes of it is not tested here."""
    from emptyset.generators import step

    def traced(function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, backend="aot_eager", dynamic=False, fullgraph=True)

    monkeypatch.setattr(step, "compiled", traced)
    found = {}
    for compiled in (False, True):
        source = made("qimera", teacher, superposed_share=0.5)
        source.begin(8, BATCH, monitor=SilentMonitor())
        source._step._take(LessonExecution(compiled, torch.float32))
        found[compiled] = [source.next_batch(BATCH).images for _ in range(3)]
        assert source._step.execution.compiled is compiled
    for eager, compiled in zip(found[False], found[True], strict=True):
        torch.testing.assert_close(compiled, eager, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("precision", "fast", "expected"),
    [
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
        ("float32", True, torch.float32),
        ("bfloat16", False, torch.bfloat16),
    ],
)
def test_products_have_the_precision_asked_for(
    precision: str,
    fast: bool,
    expected: torch.dtype,
    teacher: Teacher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from emptyset.generators import step

    monkeypatch.setattr(step, "has_fast_bfloat16", lambda _device: fast)
    source = made("gdfq", teacher)
    source.begin(8, BATCH, precision=precision)
    lesson = source.next_batch(BATCH)
    exact = teacher.module(lesson.images)
    assert bool((lesson.teacher_logits == exact).all()) is (expected == torch.float32)
    torch.testing.assert_close(lesson.teacher_logits, exact, atol=0.1, rtol=0.1)


class Notes(SilentMonitor):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def test_where_compiling_fails_it_goes_on_without_and_says_so(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emptyset.generators import step

    def broken(_function: object) -> Callable[..., Any]:
        def call(*_: object) -> None:
            raise RuntimeError("no compiler")

        return call

    monkeypatch.setattr(step, "compiled", broken)
    monkeypatch.setattr(step, "worth_compiling", lambda *_, **__: True)
    source, notes = made("gdfq", teacher), Notes()
    source.begin(8, BATCH, monitor=notes)
    before = made("gdfq", teacher)
    before.begin(8, BATCH)
    before._step._take(LessonExecution(False, source._step.execution.dtype))
    assert torch.equal(source.next_batch(BATCH).images, before.next_batch(BATCH).images)
    assert len(notes.notes) == 1
    assert "cannot compile" in notes.notes[0]
