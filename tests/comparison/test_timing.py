"""How many steps fit into a time, on a clock of our own."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from emptyset.comparison import timing
from emptyset.comparison.timing import within_seconds
from emptyset.errors import RecipeError
from emptyset.images.image_set import ImageSet
from emptyset.registry import Entry
from emptyset.teachers.teacher import InputSpec, Teacher

TEACHER = Teacher("test:none", nn.Identity(), InputSpec((1, 2, 3), (0.5,), (0.25,)))


class Clock:
    """Stands still unless somebody works."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(timing, "time", found)
    return found


@dataclass(frozen=True)
class Config:
    """Of a method on our clock.

    Attributes:
        steps: Steps of a batch.
        warm_up: Some of them.
    """

    steps: int = 100
    warm_up: int = 10

    def __post_init__(self) -> None:
        if self.steps < 4:
            raise ValueError("'steps' must be at least 4.")


def entry(clock: Clock, *, once: float, step: Any, batches: int = 3, silent: bool = False) -> Entry:
    """A method that takes `once` seconds to set up and `step(steps)` for each step."""
    runs: list[int] = []

    @dataclass(frozen=True)
    class Method:
        config: Config

        def synthesize(self, teacher: Teacher, count: int, *, seed: int, monitor: Any) -> ImageSet:
            runs.append(self.config.steps)
            clock.now += once
            total = batches * self.config.steps
            for done in range(1, total + 1):
                clock.now += step(self.config.steps)
                if not silent:
                    monitor.advance("method", done, total)
            return ImageSet(torch.zeros(count, 1, 2, 3))

    found = Entry("method", "synthesizer", Config, Method, "A method.", "ours")
    object.__setattr__(found, "runs", runs)
    return found


def test_the_steps_take_the_time_with_what_happens_once(clock: Clock) -> None:
    method = entry(clock, once=2.0, step=lambda _: 0.01)
    found = within_seconds(method, Config(), TEACHER, 5, 20.0, seed=0)
    # 3 batches: 2 + 3 · 600 · 0.01 = 20.
    assert found.steps == pytest.approx(600, abs=2)
    assert found.warm_up == pytest.approx(60, abs=1)


def test_a_trial_stops_as_soon_as_the_pace_is_known(clock: Clock) -> None:
    method = entry(clock, once=0.0, step=lambda _: 0.01)
    within_seconds(method, Config(steps=100_000), TEACHER, 5, 20.0, seed=0)
    # Two or three looks of a second each, not three thousand seconds.
    assert clock.now - 100.0 < 5.0


def test_a_pace_that_depends_on_the_steps_is_looked_at_again(clock: Clock) -> None:
    # As if many steps were compiled: they are three times as fast.
    method = entry(clock, once=1.0, step=lambda steps: 0.03 if steps < 250 else 0.01)
    found = within_seconds(method, Config(), TEACHER, 5, 30.0, seed=0)
    assert found.steps == pytest.approx((30 - 1) / 0.03, rel=0.02)
    assert len(method.runs) == 3  # type: ignore[attr-defined]


def test_a_method_that_says_nothing_is_timed_as_a_whole(clock: Clock) -> None:
    method = entry(clock, once=0.0, step=lambda _: 0.01, silent=True)
    found = within_seconds(method, Config(), TEACHER, 5, 6.0, seed=0)
    assert found.steps == pytest.approx(200, abs=2)


def test_what_a_person_chose_stays(clock: Clock) -> None:
    method = entry(clock, once=0.0, step=lambda _: 0.01)
    found = within_seconds(method, Config(warm_up=7), TEACHER, 5, 20.0, seed=0, given=("warm_up",))
    assert found.warm_up == 7


def test_a_time_that_is_too_short_is_refused(clock: Clock) -> None:
    slow = entry(clock, once=5.0, step=lambda _: 0.01)
    with pytest.raises(RecipeError, match="not even one step"):
        within_seconds(slow, Config(), TEACHER, 5, 4.0, seed=0)
    few = entry(clock, once=0.0, step=lambda _: 1.0, batches=1)
    with pytest.raises(RecipeError, match=r"allows 2 steps.*at least 4"):
        within_seconds(few, Config(), TEACHER, 5, 2.5, seed=0)


def test_a_method_without_steps_stays() -> None:
    from emptyset.registry import synthesizers

    noise = synthesizers.get("noise")
    config = noise.config()
    assert within_seconds(noise, config, TEACHER, 5, 1.0, seed=0) is config
