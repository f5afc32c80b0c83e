"""Keeps an eye on a training beside a live source: which loss stopped being finite, and the last
student before that. Nothing waits for the device between two looks.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from emptyset.errors import CollapseError
from emptyset.graph.student import Student
from emptyset.images.image_source import LiveSource
from emptyset.losses.first_fault import NEVER, never, noted
from emptyset.monitor import State
from emptyset.refiners.best_student import put_back, snapshot

# Where every loss was finite, yet its gradient was not.
WEIGHTS = "gradient of the student's weights"
# Where the images were finite, and what the student said of them was absurd: so many times as large
# as what the teacher said. A term of the source that follows from it may overflow before it does.
OUTPUT = "logits of the student"
ABSURD = 1e6


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
    """What was last good, and the batches in which losses first were not finite.

    Args:
        student: In training.
        parameters: What training changes, by path.
        source: Trained beside it.
    """

    def __init__(
        self, student: Student, parameters: Mapping[str, Tensor], source: LiveSource
    ) -> None:
        self._student, self._parameters, self._source = student, parameters, source
        self._bad_since: dict[str, Tensor] = {}
        self._good: tuple[int, State] | None = None

    def add(self, losses: Mapping[str, Tensor], batch: int) -> None:
        """Take note of one update's losses; batches count from 0."""
        for name, loss in losses.items():
            self._note(name, torch.isfinite(loss.detach()), batch)

    def add_output(self, images: Tensor, ours: Tensor, theirs: Tensor, batch: int) -> None:
        """Take note of what the student says of images that the source is to learn from.

        The source's own terms follow from it, and would be named in its place.

        Args:
            images: Of the source.
            ours: ``(N, K)``, logits of the student.
            theirs: As many of the teacher.
            batch: Counts from 0.
        """
        most = ABSURD * (1 + theirs.detach().abs().max())
        sound = ours.detach().abs().max() <= most  # False for NaN
        self._note(OUTPUT, sound | ~torch.isfinite(images.detach()).all(), batch)

    def _note(self, name: str, fine: Tensor, batch: int) -> None:
        since = self._bad_since.get(name)
        if since is None:
            since = never((), fine.device)
        self._bad_since[name] = noted(since, fine, batch)

    def look(self, number: int, *, learnt: bool, rate: float) -> None:
        """Check everything up to batch ``number``; keep the student where it has learnt.

        Args:
            number: Batches so far.
            learnt: Whether the student was updated.
            rate: Its learning rate, for the message.

        Raises:
            DivergedError: If a loss of the source or the student was not finite.
        """
        fault = self._first_fault(number)
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

    def _first_fault(self, number: int) -> str | None:
        """What was not finite in the earliest batch; within one, in the order of computing."""
        since = {name: int(batch) for name, batch in self._bad_since.items()}
        output, found = since.pop(OUTPUT, NEVER), {}
        if (fault := self._source.fault()) is not None:
            found[fault.term] = number - fault.lessons_ago
        found |= since
        if not all(bool(torch.isfinite(p).all()) for p in self._parameters.values()):
            found[WEIGHTS] = number
        first = min(found, key=found.__getitem__, default=None)
        if first is None or found[first] == NEVER:
            return None
        # By itself no reason to stop.
        return OUTPUT if output <= found[first] else first

    def keep_good(self) -> bool:
        """Put the last good student in place; False where there is none."""
        if self._good is None:
            return False
        put_back(self._student, self._parameters, self._good[1])
        return True

    def state(self) -> State:
        """What a killed run needs to go on."""
        state = {f"since|{name}": value for name, value in self._bad_since.items()}
        if self._good is not None:
            state |= {f"good|{key}": value for key, value in self._good[1].items()}
            state["after"] = torch.tensor(self._good[0])
        return state

    def load_state(self, state: State) -> None:
        """Go on from what ``state`` gave."""
        device = self._student.device
        found: dict[str, State] = {"since": {}, "good": {}}
        for name, value in state.items():
            kind, _, key = name.partition("|")
            if kind in found:
                found[kind][key] = value.to(device)
        self._bad_since = found["since"]
        self._good = (int(state["after"]), found["good"]) if found["good"] else None
