"""Inputs and targets of a block for all images, in memory or in temporary files.

Four axes lie channels last: rows are then read as the products want them. Whatever the place, what
is read is what was written, to the last bit (but for ``half``, which rounds to bfloat16).
"""

from types import TracebackType

import torch
from torch import Tensor

from emptyset.graph.room import MappedFile


class Rows:
    """A tensor ``(N, ...)`` that is written and read by ranges and choices of rows.

    Attributes:
        shape: Logical shape, images first.
        place: ``memory``, ``half`` (memory, bfloat16) or ``disk``.
        stored: The tensor itself, four axes as ``(N, H, W, C)``.
    """

    def __init__(self, shape: tuple[int, ...], place: str, device: torch.device) -> None:
        self.shape, self.place, self._device = shape, place, device
        physical = (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else shape
        self._file: MappedFile | None = None
        if place == "disk":
            self._file = MappedFile(4 * torch.Size(shape).numel())
            self.stored = self._file.tensor(physical, torch.float32)
        else:
            dtype = torch.bfloat16 if place == "half" else torch.float32
            self.stored = torch.empty(physical, dtype=dtype, device=device)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes where it lies."""
        return self.stored.numel() * self.stored.element_size()

    def write(self, start: int, values: Tensor) -> None:
        """Set the rows from ``start`` on; ``values`` in logical shape."""
        self.stored[start : start + len(values)] = _physical(values)
        self._touched(values.numel())

    def read(self, start: int, stop: int) -> Tensor:
        """Rows ``start .. stop`` in logical shape, float32, on the device."""
        return _logical(self._ready(self.stored[start:stop]))

    def chosen(self, index: Tensor) -> Tensor:
        """Rows of these numbers as they are stored, float32, on the device."""
        return self._ready(self.stored.index_select(0, index.to(self.stored.device)))

    def _ready(self, rows: Tensor) -> Tensor:
        # Always a copy of what lies in a file: it may be written again at any time.
        ready = rows.to(self._device, torch.float32, copy=self._file is not None)
        self._touched(rows.numel())
        return ready

    def _touched(self, count: int) -> None:
        if self._file is not None:
            self._file.touched(4 * count)

    def drop(self) -> None:
        """Let go of everything; the rows are not used any more."""
        self.stored, self._file = torch.empty(0), None


def _physical(values: Tensor) -> Tensor:
    return values.permute(0, 2, 3, 1) if values.dim() == 4 else values


def _logical(rows: Tensor) -> Tensor:
    return rows.permute(0, 3, 1, 2) if rows.dim() == 4 else rows


class CacheRoom:
    """Hands out room for rows: memory, then half if allowed, then files.

    Args:
        limit: Bytes that all rows in memory may take together.
        half: Whether bfloat16 is allowed where float32 does not fit.
        device: Where rows are used; in memory they lie there.
    """

    def __init__(self, limit: int, *, half: bool, device: torch.device) -> None:
        self._limit, self._half, self._device = limit, half, device
        self._held = 0
        self._made: list[Rows] = []

    def __enter__(self) -> "CacheRoom":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go of all rows, whoever still knows them."""
        for rows in list(self._made):
            self.free(rows)

    def place_for(self, shape: tuple[int, ...]) -> str:
        """Where rows of this shape would lie now: ``memory``, ``half`` or ``disk``."""
        size = 4 * torch.Size(shape).numel()
        if self._held + size <= self._limit:
            return "memory"
        return "half" if self._half and self._held + size // 2 <= self._limit else "disk"

    def rows(self, shape: tuple[int, ...]) -> Rows:
        """Room for rows of this shape.

        Raises:
            RunFolderError: If it must lie in a file, and the disk refuses.
        """
        made = Rows(shape, self.place_for(shape), self._device)
        self._made.append(made)
        if made.place != "disk":
            self._held += made.nbytes
        return made

    def free(self, rows: Rows) -> None:
        """Give the room back; the rows are not used any more."""
        if rows.place != "disk":
            self._held -= rows.nbytes
        self._made.remove(rows)
        rows.drop()
