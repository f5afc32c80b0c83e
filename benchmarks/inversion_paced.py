"""Jobs in processes of their own that work by turns, so that what else the machine does hits all.

A job calls ``Turns.step_done`` after each of its steps and goes on when it is its turn. Whoever
runs the jobs gives turns of so many steps and hears how long each took. Only the standard library
is needed: one of the jobs runs in an environment without emptyset.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class Turns:
    """The job's side. Takes the process's standard output for itself; prints go to the errors.

    Args:
        settle: Waits until what a device was given to do is done.
    """

    def __init__(self, settle: Callable[[], None] = lambda: None) -> None:
        self._settle = settle
        self._told = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._left = 0
        self._started = self._cpu = 0.0

    def begin(self) -> None:
        """Everything is imported: wait for the first turn."""
        self._tell({"ready": True})
        self._wait()

    def step_done(self) -> None:
        """One step is done; returns when the next may begin."""
        self._left -= 1
        if self._left == 0:
            self._settle()
            cpu = time.process_time() - self._cpu
            self._tell({"seconds": time.perf_counter() - self._started, "cpu": cpu})
            self._wait()

    def steps(self, planned: Iterable[int]) -> Iterator[int]:
        """The planned steps, each at its turn."""
        for step in planned:
            yield step
            self.step_done()

    def finish(self, **facts: Any) -> None:
        """The job is done; ``facts`` is JSON data."""
        self._tell({"done": True, **facts})

    def _wait(self) -> None:
        line = sys.stdin.readline()
        if not line:
            # Whoever ran this is gone.
            raise SystemExit(1)
        self._left = int(line)
        self._started, self._cpu = time.perf_counter(), time.process_time()

    def _tell(self, fact: dict[str, Any]) -> None:
        self._told.write(json.dumps(fact) + "\n")


@dataclass
class Job:
    """The other side of one job.

    Attributes:
        name: For messages.
        command: What to run.
        steps: Steps that the job has.
        images_per_step: Images that one of them moves.
        environment: Added to this process's.
        turns: Steps, seconds and seconds of processor time (all threads) of each turn so far.
        facts: What the finished job told.
    """

    name: str
    command: Sequence[str]
    steps: int
    images_per_step: int
    environment: Mapping[str, str] = field(default_factory=dict)
    turns: list[tuple[int, float, float]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    _process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it, and wait until it has imported everything."""
        self._process = subprocess.Popen(
            list(self.command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **self.environment},
        )  # fmt: skip
        self._hear()

    @property
    def left(self) -> int:
        """Steps that it still has to do."""
        return self.steps - sum(turn[0] for turn in self.turns)

    def turn(self, images: int) -> None:
        """Let it move so many images by one step, or what is left of its steps."""
        steps = min(self.left, max(1, images // self.images_per_step))
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        heard = self._hear()
        self.turns.append((steps, heard["seconds"], heard["cpu"]))
        if not self.left:
            # A last turn, without a step: the job finishes its images and writes them.
            self._process.stdin.write("1\n")
            self._process.stdin.flush()
            self.facts = {k: v for k, v in self._hear().items() if k != "done"}
            self._process.wait()

    def stop(self) -> None:
        """End it, done or not."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _hear(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: ended with code {self._process.wait()}; see above.")
        fact: dict[str, Any] = json.loads(line)
        return fact


def run_by_turns(jobs: Sequence[Job], images: int) -> None:
    """Run all jobs to their end, by turns of ``images`` image-iterations each.

    The first turn of each is one step: whatever is done only once (compiling) happens in it.
    """
    try:
        for job in jobs:
            job.start()
        for job in jobs:
            job.turn(1)
        while any(job.left for job in jobs):
            for job in jobs:
                if job.left:
                    job.turn(images)
    finally:
        for job in jobs:
            job.stop()
