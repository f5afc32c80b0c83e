"""Inputs and targets of a block for all images, in memory or in temporary files.

Four axes lie channels last: rows are then read as the products want them. Whatever the place, what
is read is what was written, to the last bit (but for ``half``, which rounds to bfloat16).
"""

import mmap
import os
import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from emptyset.disk import disk_errors

# Mapped pages count as the process's memory until they are given back [bytes].
_GIVE_BACK_EVERY = 256 << 20
BYTES_PER_GIGABYTE = 2**30


class Rows:
    """A tensor ``(N, ...)`` that is written and read by ranges and choices of rows.

    Attributes:
        shape: Logical shape, images first.
        place: ``memory``, ``half`` (memory, bfloat16) or ``disk``.
        stored: The tensor itself, four axes as ``(N, H, W, C)``.
    """

    def __init__(
        self, shape: tuple[int, ...], place: str, device: torch.device, path: Path | None = None
    ) -> None:
        self.shape, self.place, self._device, self._path = shape, place, device, path
        physical = (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else shape
        self._map: mmap.mmap | None = None
        self._touched = 0
        if path is None:
            dtype = torch.bfloat16 if place == "half" else torch.float32
            self.stored = torch.empty(physical, dtype=dtype, device=device)
            return
        size = 4 * torch.Size(shape).numel()
        with disk_errors(path.parent), path.open("w+b") as stream:
            # Claimed at once: a full disk must not show as a crash in the middle of a write.
            _claim(stream.fileno(), size)
            self._map = mmap.mmap(stream.fileno(), size)
        values = np.frombuffer(self._map, dtype=np.float32).reshape(physical)
        self.stored = torch.from_numpy(values)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes where it lies."""
        return self.stored.numel() * self.stored.element_size()

    def write(self, start: int, values: Tensor) -> None:
        """Set the rows from ``start`` on; ``values`` in logical shape."""
        self.stored[start : start + len(values)] = _physical(values)
        self._give_back(values.numel() * 4)

    def read(self, start: int, stop: int) -> Tensor:
        """Rows ``start .. stop`` in logical shape, float32, on the device."""
        return _logical(self._ready(self.stored[start:stop]))

    def chosen(self, index: Tensor) -> Tensor:
        """Rows of these numbers as they are stored, float32, on the device."""
        return self._ready(self.stored.index_select(0, index.to(self.stored.device)))

    def _ready(self, rows: Tensor) -> Tensor:
        on_disk = self._map is not None
        # Always a copy of what is mapped: the map may be given back at any time.
        ready = rows.to(self._device, torch.float32, copy=on_disk)
        self._give_back(rows.numel() * 4)
        return ready

    def _give_back(self, size: int) -> None:
        """Let the system forget mapped pages; they stay in the file."""
        self._touched += size
        if self._map is not None and self._touched >= _GIVE_BACK_EVERY:
            self._touched = 0
            if hasattr(mmap, "MADV_DONTNEED"):
                self._map.madvise(mmap.MADV_DONTNEED)

    def drop(self) -> None:
        """Let go of everything; the rows are not used any more."""
        self.stored, self._map = torch.empty(0), None
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _claim(descriptor: int, size: int) -> None:
    """Make room in the file, zeros."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, max(size, 1))
    else:
        os.ftruncate(descriptor, max(size, 1))


def _physical(values: Tensor) -> Tensor:
    return values.permute(0, 2, 3, 1) if values.dim() == 4 else values


def _logical(rows: Tensor) -> Tensor:
    return rows.permute(0, 3, 1, 2) if rows.dim() == 4 else rows


class CacheRoom:
    """Hands out room for rows: memory, then half if allowed, then files in a temporary folder.

    Args:
        limit: Bytes that all rows in memory may take together.
        half: Whether bfloat16 is allowed where float32 does not fit.
        device: Where rows are used; in memory they lie there.
    """

    def __init__(self, limit: int, *, half: bool, device: torch.device) -> None:
        self._limit, self._half, self._device = limit, half, device
        self._held = 0
        self._made = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> "CacheRoom":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the files."""
        if self._folder is not None:
            self._folder.cleanup()

    @property
    def folder(self) -> str | None:
        """Where the files are, once there is one."""
        return None if self._folder is None else self._folder.name

    def place_for(self, shape: tuple[int, ...]) -> str:
        """Where rows of this shape would lie now: ``memory``, ``half`` or ``disk``."""
        size = 4 * torch.Size(shape).numel()
        if self._held + size <= self._limit:
            return "memory"
        return "half" if self._half and self._held + size // 2 <= self._limit else "disk"

    def rows(self, shape: tuple[int, ...]) -> Rows:
        """Room for rows of this shape."""
        place, path = self.place_for(shape), None
        if place == "disk":
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="emptyset-")
            path = Path(self._folder.name) / f"{self._made}.rows"
        self._made += 1
        made = Rows(shape, place, self._device, path)
        if place != "disk":
            self._held += made.nbytes
        return made

    def free(self, rows: Rows) -> None:
        """Give the room back; the rows are not used any more."""
        if rows.place != "disk":
            self._held -= rows.nbytes
        rows.drop()


def gigabytes(size: int) -> str:
    """``1.25 GB``."""
    return f"{size / BYTES_PER_GIGABYTE:.2f} GB"
