"""What a generator method does once, before its generator learns."""

from typing import Protocol

from emptyset.monitor import Monitor, State


class Groundwork(Protocol):
    """Found out about the teacher once; the loss terms read it."""

    def lay(self, *, seed: int, monitor: Monitor) -> None:
        """Do it, if it is not done.

        Args:
            seed: Of everything random.
            monitor: Hears of progress; keeps what was done, so that a killed run goes on.
        """

    def state(self) -> State:
        """What was found; empty before it was done."""

    def load_state(self, state: State) -> None:
        """Take over what ``state`` gave."""
