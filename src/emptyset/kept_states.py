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


class KeepingMonitor:
    """Passes progress on, and keeps states as safetensors files, aside and renamed."""

    def __init__(
        self, shown: Monitor, folder: Path, log: Callable[[str], None], every: float = KEEP_EVERY
    ) -> None:
        self._shown = shown
        self._folder = folder
        self._log = log
        self._every = every
        self._last = time.monotonic()

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
            finally:
                aside.unlink(missing_ok=True)
        self._last = time.monotonic()

    def restore(self, key: str) -> State | None:
        """Read the state; a file that is missing or truncated counts as none."""
        try:
            return dict(load_file(self._path(key)))
        except (OSError, SafetensorError):
            return None

    def _path(self, key: str) -> Path:
        readable = "".join(c if c.isalnum() or c in "-_." else "_" for c in key)[:60]
        return (
            self._folder / f"{readable}-{hashlib.sha256(key.encode()).hexdigest()[:8]}.safetensors"
        )
