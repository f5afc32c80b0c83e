"""In which order the batches move: one after the other to the end, or in rounds as one set."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from emptyset.inversion.frozen_teacher import FrozenTeacher
from emptyset.inversion.joint_statistics import TEACHER, SetMoments
from emptyset.inversion.method import OtherImages
from emptyset.inversion.parked_states import ParkedStates
from emptyset.inversion.progress import Progress, as_state, moments_in
from emptyset.inversion.run import Run, is_finished
from emptyset.monitor import State

# Of finished batches that later ones look at; what is more waits in a file.
_MOST_EARLIER_BYTES = 256 << 20


def separately(run: Run) -> Iterator[State]:
    """The finished images of each batch, which knows nothing of the later ones."""
    with ParkedStates(_MOST_EARLIER_BYTES) as finished:
        for batch in range(run.plan.batches):
            kept = run.monitor.restore(run.key(batch))
            if kept is None or not is_finished(kept):
                looked_at = batch if run.method.looks_at_others else 0
                progress = run.start(batch, _EarlierImages(run, finished, looked_at))
                if kept is not None:
                    progress.resume(kept, run.frozen.device)
                run.go_on(progress, batch, run.method.steps, batch * run.method.steps)
                kept = run.finished(progress, batch)
                run.monitor.keep(run.key(batch), lambda found=kept: found, final=True)  # type: ignore[misc]
            if run.method.looks_at_others:
                finished.put(batch, kept)
            yield kept


@dataclass(frozen=True)
class _EarlierImages:
    """Images and targets of the batches before, read while they are looked at.

    Attributes:
        run: What the batches have in common.
        finished: Their states.
        batches: How many there are.
    """

    run: Run
    finished: ParkedStates
    batches: int

    def __len__(self) -> int:
        return self.batches * max(1, len(self.run.method.snapshots))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        for batch in range(self.batches):
            yield from self.run.as_earlier(self.finished.get(batch))


def jointly(run: Run, others: Sequence[FrozenTeacher]) -> Iterator[State]:
    """The finished images of each batch, all moved in rounds to match the statistics as one set.

    In a round every batch has its turn of ``Method.joint_steps`` steps, in which the moments of
    the others stay what they were. In the first round a batch is matched together with those that
    had their turn before it; noise is never counted. Only the batch whose turn it is lies on the
    teacher's device.

    Args:
        run: With ``method.joint_steps`` set.
        others: Copies of ``method.others``.
    """
    assert run.method.joint_steps is not None
    with ParkedStates() as parked:
        rounds = _Rounds(run, parked, set_moments(run, others))
        rounds.restore()
        steps, turn = run.method.steps, run.method.joint_steps
        for end in range(turn, steps + turn, turn):
            for batch in range(run.plan.batches):
                rounds.take_turn(batch, min(end, steps))
        for batch in range(run.plan.batches):
            yield parked.get(batch)


def set_moments(run: Run, others: Sequence[FrozenTeacher]) -> SetMoments:
    """A memory for the moments of all batches, empty.

    Args:
        run: Method, teacher and batches.
        others: Copies of ``method.others``.
    """
    frozen = run.frozen
    # The images themselves count as one more layer of the teacher.
    widths = {TEACHER: frozen.channels() + frozen.shape[0]}
    widths |= {f"other.{number}": other.channels() for number, other in enumerate(others)}
    return SetMoments(widths, run.plan.size, frozen.device)


@dataclass
class _Rounds:
    """A set of batches that move in turn.

    Attributes:
        run: What they have in common.
        parked: The state of every batch that had a turn.
        moments: What each of them last caused.
        done: Steps done per batch.
        started: Batches that had a turn in this process, without what ``parked`` holds.
    """

    run: Run
    parked: ParkedStates
    moments: SetMoments
    done: dict[int, int] = field(default_factory=dict)
    started: dict[int, Progress] = field(default_factory=dict)

    def restore(self) -> None:
        """Take up what an earlier, killed run kept: whole turns, and one that was interrupted."""
        for batch in range(self.run.plan.batches):
            kept = self.run.monitor.restore(self.run.key(batch))
            if kept is not None:
                self._park(batch, kept)

    def take_turn(self, batch: int, end: int) -> None:
        """Move one batch until it has done ``end`` steps."""
        run = self.run
        if self.done.get(batch, 0) >= end:
            return
        progress = self._progress(batch)
        progress.context |= self.moments.elsewhere(batch)
        elsewhere = sum(steps for other, steps in self.done.items() if other != batch)
        run.go_on(progress, batch, end, elsewhere)
        last = as_state({name: value.cpu() for name, value in progress.moments.items()})
        over = end == run.method.steps
        state = run.finished(progress, batch) | last if over else progress.state()
        # Written at the end of every turn: the others' next turns build on it.
        run.monitor.keep(run.key(batch), lambda: state, final=True)
        self._park(batch, state)
        progress.empty()

    def _progress(self, batch: int) -> Progress:
        """The batch as its last turn left it, or new."""
        run, progress = self.run, self.started.get(batch)
        if progress is None:
            progress = run.start(batch, self._others(batch))
        elif run.method.looks_at_others:
            run.context_again(progress, self._others(batch))
        if batch in self.done:
            progress.resume(self.parked.get(batch), run.frozen.device)
        self.started[batch] = progress
        return progress

    def _park(self, batch: int, state: State) -> None:
        self.parked.put(batch, state)
        self.moments.put(batch, moments_in(state))
        self.done[batch] = self.run.method.steps if is_finished(state) else int(state["done"])

    def _others(self, batch: int) -> OtherImages:
        """Images and targets of all other batches that had a turn."""
        return _ImagesNow(self, [other for other in sorted(self.done) if other != batch])

    def images_now(self, batch: int) -> list[tuple[Tensor, Tensor | None]]:
        """The images of a batch that had a turn, and their targets; finished or on its way."""
        state = self.parked.get(batch)
        if is_finished(state):
            return self.run.as_earlier(state)
        count = len(self.run.method.groups)
        variables = [state[f"variable.{index}"] for index in range(count)]
        return [(self.run.rendered(variables), self.run.targets(batch))]


@dataclass(frozen=True)
class _ImagesNow:
    """Images and targets of some batches, read while they are looked at.

    Attributes:
        rounds: Knows their states.
        batches: Their numbers.
    """

    rounds: _Rounds
    batches: list[int]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        for batch in self.batches:
            yield from self.rounds.images_now(batch)
