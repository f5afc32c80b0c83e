"""How many steps a method can take in a given time on this machine.

A trial runs the method as it would be run, with a number of steps, and stops it once its pace is
known: so that what depends on the number of steps, above all whether the objective is compiled, is
measured as it will be. The outcome is written down by whoever asks, since it is the one thing here
that another run of the same command would not find equal.
"""

import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from emptyset.errors import RecipeError
from emptyset.inversion.budget import has_steps, with_steps
from emptyset.monitor import SilentMonitor
from emptyset.registry import Entry
from emptyset.teachers.teacher import Teacher

# Trials that the number of steps may take to settle, and how near is settled.
MOST_TRIALS = 4
CLOSE = 0.1
# A trial looks at the pace for this share of the budget, within these limits [seconds].
WINDOW_SHARE, SHORTEST_WINDOW, LONGEST_WINDOW = 0.05, 0.3, 15.0


class _EnoughSeen(BaseException):
    """Ends a trial. No error, and nothing that a method may catch as one."""


@dataclass
class _Pace(SilentMonitor):
    """Watches how fast a method goes on, and stops it once that is known."""

    window: float
    started: float = field(default_factory=lambda: time.monotonic())
    first: tuple[int, float] | None = None
    last: tuple[int, float] | None = None
    total: int = 0
    what: str = ""

    def advance(self, what: str, done: int, total: int, detail: str = "") -> None:
        """Note the time; stop where the window is over."""
        now = time.monotonic()
        if self.first is None or what != self.what:
            # Everything up to the first step happens once: set-up, compilation.
            self.what, self.first = what, (done, now)
        self.last, self.total = (done, now), total
        if now - self.first[1] >= self.window and done > self.first[0]:
            raise _EnoughSeen

    def share_within(self, seconds: float) -> float:
        """How many times these steps fit into the time, by the pace that was seen."""
        if self.first is None or self.last is None or self.last[0] <= self.first[0]:
            # It ended without a word in between.
            return seconds / (time.monotonic() - self.started)
        pace = (self.last[0] - self.first[0]) / (self.last[1] - self.first[1])
        once = self.first[1] - self.started
        return (self.first[0] + (seconds - once) * pace) / self.total


def within_seconds(
    entry: Entry,
    config: Any,
    teacher: Teacher,
    count: int,
    seconds: float,
    *,
    seed: int,
    given: tuple[str, ...] = (),
) -> Any:
    """Settings whose steps take about this long here.

    Args:
        entry: The method.
        config: Its settings.
        teacher: The trained network.
        count: Images to make.
        seconds: Wall time of making them.
        seed: Seed of everything random.
        given: Settings that a person chose; they stay.

    Returns:
        The settings; unchanged for a method without steps.

    Raises:
        RecipeError: If the method cannot do with so few steps.
    """
    if not has_steps(config):
        return config
    tried = config
    for _ in range(MOST_TRIALS):
        steps = int(tried.steps * _trial(entry, tried, teacher, count, seconds, seed))
        if steps < 1:
            raise RecipeError(f"not even one step of every batch fits into {seconds:g} s here.")
        found = with_steps(config, steps, given=given)
        if abs(steps - tried.steps) <= CLOSE * tried.steps:
            return found
        tried = found
    return tried


def _trial(
    entry: Entry, config: Any, teacher: Teacher, count: int, seconds: float, seed: int
) -> float:
    """How many times the steps of these settings fit into the time."""
    pace = _Pace(min(LONGEST_WINDOW, max(SHORTEST_WINDOW, WINDOW_SHARE * seconds)))
    with suppress(_EnoughSeen):
        entry.make(config).synthesize(teacher, count, seed=seed, monitor=pace)
    return pace.share_within(seconds)
