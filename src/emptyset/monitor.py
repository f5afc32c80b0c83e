"""How a stage tells its progress and survives a kill, without knowing screen, clock or disk.

A stage calls ``advance``, ``note``, ``keep`` and ``restore``; whoever runs it decides what these
do. ``SILENT`` does nothing, which is what plain library calls use.
"""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

State = dict[str, Tensor]


class Monitor(Protocol):
    """What a stage may say while it works."""

    def advance(self, what: str, done: int, total: int, detail: str = "") -> None:
        """``done`` of ``total`` units of ``what`` are finished."""

    def note(self, message: str) -> None:
        """Something the user should read, said once."""

    def keep(self, key: str, state: Callable[[], State], *, final: bool = False) -> None:
        """Offer the state to resume from. Cheap to call in every step.

        ``state`` is called only when the monitor decides that it is time to write (or when
        ``final``: a piece of work is complete, and what follows builds on it).
        """

    def restore(self, key: str) -> State | None:
        """The last state kept under ``key`` by an earlier, killed run, or None."""


class SilentMonitor:
    """Says nothing, keeps nothing."""

    def advance(self, what: str, done: int, total: int, detail: str = "") -> None:
        """Do nothing."""

    def note(self, message: str) -> None:
        """Do nothing."""

    def keep(self, key: str, state: Callable[[], State], *, final: bool = False) -> None:
        """Do nothing."""

    def restore(self, key: str) -> State | None:
        """Nothing was kept."""
        return None


SILENT = SilentMonitor()


class PrefixedMonitor:
    """Gives the kept states of one part of a stage names of their own."""

    def __init__(self, inner: Monitor, prefix: str) -> None:
        self._inner = inner
        self._prefix = prefix

    def advance(self, what: str, done: int, total: int, detail: str = "") -> None:
        """Pass on."""
        self._inner.advance(what, done, total, detail)

    def note(self, message: str) -> None:
        """Pass on."""
        self._inner.note(message)

    def keep(self, key: str, state: Callable[[], State], *, final: bool = False) -> None:
        """Pass on under the prefixed key."""
        self._inner.keep(f"{self._prefix}.{key}", state, final=final)

    def restore(self, key: str) -> State | None:
        """Ask for the prefixed key."""
        return self._inner.restore(f"{self._prefix}.{key}")
