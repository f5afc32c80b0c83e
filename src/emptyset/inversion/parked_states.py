"""States of batches that wait for their turn, in memory and beyond a limit in temporary files."""

import tempfile
from pathlib import Path
from types import TracebackType

from safetensors.torch import load_file, save_file

from emptyset.disk import disk_errors
from emptyset.monitor import State

# As much as 5,120 images of 32 x 32 with Adam's moments take ten times over.
_MOST_BYTES = 2 << 30


class ParkedStates:
    """A state per batch; what is read is what was put, to the last bit.

    Args:
        most_bytes: States that would go beyond this together are written to files.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most = most_bytes
        self._held: dict[int, State] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> "ParkedStates":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the files."""
        self._held.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def put(self, batch: int, state: State) -> None:
        """Keep the state in place of an earlier one."""
        self._held.pop(batch, None)
        if sum(map(_bytes, self._held.values())) + _bytes(state) <= self._most:
            self._held[batch] = state
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="emptyset-")
        path = self._file(batch)
        with disk_errors(path.parent):
            # Not over the old file: what was read from it may still be mapped into memory.
            save_file(state, path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)

    def get(self, batch: int) -> State:
        """The state of a batch that has one."""
        if batch in self._held:
            return self._held[batch]
        return dict(load_file(self._file(batch)))

    def _file(self, batch: int) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / f"{batch}.safetensors"


def _bytes(state: State) -> int:
    return sum(value.numel() * value.element_size() for value in state.values())
