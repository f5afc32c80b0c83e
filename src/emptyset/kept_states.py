"""States to resume from, kept as files while a stage works."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from emptyset.disk import disk_errors
from emptyset.monitor import Monitor, State

KEEP_EVERY = 20.0
SPENT = "seconds.txt"


class KeepingMonitor:
    """Passes progress on, and keeps states as safetensors files, aside and renamed.

    Kept beside the states is the time that they took, so that the time of a piece of work that was
    killed and gone on with is known too.
    """

    def __init__(
        self, shown: Monitor, folder: Path, log: Callable[[str], None], every: float = KEEP_EVERY
    ) -> None:
        self._shown = shown
        self._folder = folder
        self._log = log
        self._every = every
        self._last = self._started = time.monotonic()
        self._spent_before = self._read_spent()

    def advance(self, what: str, done: int, total: int, detail: str = "") -> None:
        """Pass on."""
        self._shown.advance(what, done, total, detail)

    def note(self, message: str) -> None:
        """Pass on, and write to the log."""
        self._log(f"note: {message}")
        self._shown.note(message)

    def keep(self, key: str, state: Callable[[], State], *, final: bool = False) -> None:
        """Write the state if the last one is old enough, or at once when it is final."""
        if not final and time.monotonic() - self._last < self._every:
            return
        # Safetensors refuses tensors that share memory; a copy never does.
        tensors = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in state().items()}
        path = self._path(key)
        aside = path.with_suffix(".part")
        with disk_errors(self._folder):
            try:
                save_file(tensors, aside)
                aside.replace(path)
                aside.write_text(f"{self.seconds():.3f}\n", encoding="utf-8")
                aside.replace(self._folder / SPENT)
            finally:
                aside.unlink(missing_ok=True)
        self._last = time.monotonic()

    def restore(self, key: str) -> State | None:
        """Read the state; a file that is missing or truncated counts as none."""
        try:
            return dict(load_file(self._path(key)))
        except (OSError, SafetensorError):
            return None

    def seconds(self) -> float:
        """How long the work took so far, without what a kill undid [seconds]."""
        return self._spent_before + time.monotonic() - self._started

    def _read_spent(self) -> float:
        try:
            return float((self._folder / SPENT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0.0

    def _path(self, key: str) -> Path:
        readable = "".join(c if c.isalnum() or c in "-_." else "_" for c in key)[:60]
        return (
            self._folder / f"{readable}-{hashlib.sha256(key.encode()).hexdigest()[:8]}.safetensors"
        )
