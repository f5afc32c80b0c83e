"""One unit at work: its tensors, its steps, the looks at its error, and going on after a kill."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from emptyset.errors import CollapseError
from emptyset.graph.student import Student
from emptyset.monitor import Monitor, State
from emptyset.reconstruction.config import Course
from emptyset.reconstruction.execution import CHANGED, Steps
from emptyset.reconstruction.graph_function import GraphFunction
from emptyset.reconstruction.learnables import Learnables
from emptyset.reconstruction.outcome import Snapshot, install, switched
from emptyset.reconstruction.passes import distance
from emptyset.reconstruction.unit_tensors import UnitRows, UnitTensors
from emptyset.reconstruction.units import Unit

# A lower error counts when it is lower by this share.
_NOTABLE = 1e-3
# Images that a check looks at.
_CHECKED_IMAGES = 256


@dataclass
class Best:
    """The best that was seen at a check.

    Attributes:
        error: Its error.
        flat: What was learnt then, or None: nothing was checked yet.
        since: Checks since it was last notably lower.
    """

    error: float = math.inf
    flat: Tensor | None = None
    since: int = 0


class Optimisation:
    """Learns one unit; the student is changed by looks at the error only.

    Attributes:
        learnables: What the flat vector means.
        steps: Steps to be done: none where there is nothing to learn.
        done: Steps that were done.
    """

    def __init__(
        self, student: Student, unit: Unit, rows: UnitRows, course: Course, *,
        seed: int, function: GraphFunction, originals: dict[str, Tensor], is_compiled: bool,
    ) -> None:  # fmt: skip
        """Get ready; nothing is learnt yet.

        Args:
            student: As it is before.
            unit: What is learnt of it.
            rows: Inputs and targets.
            course: What is learnt, by which rule.
            seed: Of everything random in this unit.
            function: The unit's stretch.
            originals: Weights to learn from in place of the student's, by path.
            is_compiled: Whether its step is compiled.
        """
        self._student, self._unit, self._rows, self._course = student, unit, rows, course
        self._function, self._seed, self._is_compiled = function, seed, is_compiled
        self.learnables = Learnables(student, unit, course, function.quantizers, originals)
        self.steps = course.steps if self.learnables.start.numel() else 0
        self.done = 0
        self._best = Best()

    # Steps -----------------------------------------------------------------------------------

    def run(
        self, steps: Steps, monitor: Monitor, key: str, advance: Callable[[int], None]
    ) -> Tensor:
        """All steps, or those that are left after a kill.

        Args:
            steps: Makes the step.
            monitor: Keeps and restores the state.
            key: Under which it is kept.
            advance: Told the steps done.

        Returns:
            The flat vector that was learnt: the best that a check saw with ``patience``, else the
            last.

        Raises:
            CollapseError: If it is not finite; the student then has the best that was seen.
        """
        if self.steps == 0:
            return self.learnables.start
        course, student = self._course, self._student
        before = Snapshot.of(student, self._unit)
        tensors = UnitTensors(
            self._function, self.learnables, self._rows, course,
            channel_axis=self._unit.channel_axis, seed=self._seed,
            fused=self._is_compiled or student.device.type != "cpu",
        )  # fmt: skip
        learnt = {name: tensors.named[name] for name in CHANGED}
        self._resume(monitor.restore(key), learnt)
        step = steps.step(tensors.recipe, tensors.named, is_compiled=self._is_compiled)
        while self.done < self.steps and not self._stopped():
            tensors.prepare(self.done)
            step(tensors.named)
            self.done += 1
            if self.done % course.config.check_every == 0 or self.done == self.steps:
                self._check(learnt["flat"], before)
            advance(self.done)
            monitor.keep(key, lambda: self._state(learnt))
        before.restore(student)
        flat = learnt["flat"] if self._best.flat is None else self._best.flat
        return flat.detach().clone()

    def _stopped(self) -> bool:
        patience = self._course.config.patience
        return patience > 0 and self._best.since >= patience

    def _check(self, flat: Tensor, before: Snapshot) -> None:
        """Look for NaN and, with ``patience``, at the error after the warm-up."""
        config = self._course.config
        if not bool(torch.isfinite(flat).all()):
            before.restore(self._student)
            if self._best.flat is not None:
                install(self._student, self.learnables.outcome(self._best.flat))
            raise CollapseError(
                f"{self._course.name}: block '{self._unit.name}' diverged (NaN or infinity) within "
                f"{self.done} steps. The block was put back to its best state, and the blocks "
                "before it keep what they learnt. Lower the learning rates, or set precision to "
                "float32."
            )
        if config.patience == 0 or self.done < config.warm_up * self.steps:
            return
        install(self._student, self.learnables.outcome(flat))
        error = self.error(_CHECKED_IMAGES)
        notable = error < self._best.error * (1 - _NOTABLE)
        self._best.since = 0 if notable else self._best.since + 1
        if error < self._best.error:
            self._best.error, self._best.flat = error, flat.detach().clone()

    def error(self, limit: int | None = None) -> float:
        """Distance of the student's own outputs of this unit from its targets.

        Args:
            limit: At most this many images; None: all.
        """
        rows, size = self._rows, self._course.config.batch_size
        axis = self._unit.channel_axis
        with switched(self._student, activations=self._course.activations):
            return distance(self._unit.body, rows.x, rows.y, size, axis=axis, limit=limit)

    # Kept states -----------------------------------------------------------------------------

    def _state(self, learnt: State) -> State:
        best = self._best
        return {
            **learnt,
            **({} if best.flat is None else {"best": best.flat}),
            "done": torch.tensor(self.done),
            "best_error": torch.tensor(best.error, dtype=torch.double),
            "since": torch.tensor(best.since),
        }

    def _resume(self, state: State | None, learnt: State) -> None:
        """Take over what a killed run had learnt."""
        if state is None:
            return
        for name, value in learnt.items():
            value.copy_(state[name])
        found = state.get("best")
        self._best = Best(
            float(state["best_error"]),
            None if found is None else found.to(self._student.device),
            int(state["since"]),
        )
        self.done = int(state["done"])
