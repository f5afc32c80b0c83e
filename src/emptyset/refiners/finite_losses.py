"""Keeps an eye on a training beside a live source: which loss stopped being finite, and the last
student before that. Nothing waits for the device between two looks.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from emptyset.errors import CollapseError
from emptyset.graph.student import Student
from emptyset.images.image_source import LiveSource
from emptyset.monitor import State
from emptyset.refiners.best_student import put_back, snapshot

# Where every loss was finite, yet its gradient was not.
WEIGHTS = "gradient of the student's weights"


class DivergedError(CollapseError):
    """Training beside a live source stopped being finite; says which loss term.

    Attributes:
        kept: Whether the student holds what it was when all was finite, having learnt something;
            otherwise it is as it was.
    """

    def __init__(self, message: str, *, kept: bool) -> None:
        super().__init__(message)
        self.kept = kept


class FiniteLosses:
    """What was last good, and sums in which a loss that was not finite stays visible.

    Args:
        student: In training.
        parameters: What training changes, by path.
        source: Trained beside it.
    """

    def __init__(
        self, student: Student, parameters: Mapping[str, Tensor], source: LiveSource
    ) -> None:
        self._student, self._parameters, self._source = student, parameters, source
        self._sums: dict[str, Tensor] = {}
        self._good: tuple[int, State] | None = None

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Take note of one update's losses."""
        for name, loss in losses.items():
            self._sums[name] = loss.detach() + self._sums.get(name, 0.0)

    def look(self, number: int, *, learnt: bool, rate: float) -> None:
        """Check everything up to batch ``number``; keep the student where it has learnt.

        Args:
            number: Batches so far.
            learnt: Whether the student was updated.
            rate: Its learning rate, for the message.

        Raises:
            DivergedError: If a loss of the source or the student was not finite.
        """
        bad = [name for name, total in self._sums.items() if not bool(torch.isfinite(total))]
        if not all(bool(torch.isfinite(p).all()) for p in self._parameters.values()):
            bad.append(WEIGHTS)
        fault = self._source.fault() or next(iter(bad), None)
        if fault is not None:
            left = "before" if self._good is None else f"after batch {self._good[0]}"
            raise DivergedError(
                f"distill: training diverged: the loss term '{fault}' is NaN or infinite (seen "
                f"after batch {number}). The student was left as it was {left}, when everything "
                f"was finite. Lower learning_rate (it was {rate:g}) or that of the source.",
                kept=self._good is not None,
            )
        if learnt:
            self._good = (number, snapshot(self._student, self._parameters))

    def keep_good(self) -> bool:
        """Put the last good student in place; False where there is none."""
        if self._good is None:
            return False
        put_back(self._student, self._parameters, self._good[1])
        return True

    def state(self) -> State:
        """What a killed run needs to go on."""
        state = {f"sum|{name}": value for name, value in self._sums.items()}
        if self._good is not None:
            state |= {f"good|{key}": value for key, value in self._good[1].items()}
            state["after"] = torch.tensor(self._good[0])
        return state

    def load_state(self, state: State) -> None:
        """Go on from what ``state`` gave."""
        device = self._student.device
        found: dict[str, State] = {"sum": {}, "good": {}}
        for name, value in state.items():
            kind, _, key = name.partition("|")
            if kind in found:
                found[kind][key] = value.to(device)
        self._sums = found["sum"]
        self._good = (int(state["after"]), found["good"]) if found["good"] else None
