"""Progress on stderr: bars on a terminal, plain lines otherwise, nothing when quiet."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from emptyset.cli.output import say
from emptyset.monitor import Monitor, SilentMonitor, State

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_EVERY = 5.0


class PlainLines(SilentMonitor):
    """One line every few seconds, for logs and pipes."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def advance(self, what: str, done: int, total: int, detail: str = "") -> None:
        """Print when it is time, and at the end."""
        now = time.monotonic()
        finished = done >= total
        if not finished and now - self._last.setdefault(what, now) < LINE_EVERY:
            return
        self._last[what] = now
        say(f"{what}: {done}/{total}{f'  {detail}' if detail else ''}")

    def note(self, message: str) -> None:
        """Print."""
        say(message)


class NotesOnly(SilentMonitor):
    """Warnings only, for ``--quiet``."""

    def note(self, message: str) -> None:
        """Print warnings; everything else is not needed."""
        if message.startswith("Warning"):
            say(message)


class Bars:
    """A bar per kind of work."""

    def __init__(self, progress: "Progress") -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def advance(self, what: str, done: int, total: int, detail: str = "") -> None:
        """Move the bar; a kind of work that starts again gets a new one."""
        if what in self._tasks:
            task = self._progress.tasks[self._progress.task_ids.index(self._tasks[what])]
            if task.finished and done < total:
                del self._tasks[what]
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total, detail="")
        self._progress.update(self._tasks[what], completed=done, total=total, detail=detail)

    def note(self, message: str) -> None:
        """Print above the bars."""
        self._progress.console.print(message, highlight=False, markup=False)

    def keep(self, key: str, state: Callable[[], State], *, final: bool = False) -> None:
        """Nothing is kept here; the run folder does that."""

    def restore(self, key: str) -> State | None:
        """Nothing was kept here."""
        return None


@contextmanager
def shown_progress(*, quiet: bool = False) -> Iterator[Monitor]:
    """A monitor that shows progress as the surroundings allow."""
    if quiet:
        yield NotesOnly()
        return
    if not sys.stderr.isatty():
        yield PlainLines()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}", style="dim"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield Bars(progress)
