"""Room for what is held of all images at once: memory, and files where that is not enough.

Files have no name, so a kill at any moment leaves none behind. They lie in the folder that
``TMPDIR`` names; without it in ``/var/tmp``, since ``/tmp`` often is memory itself.
"""

import mmap
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from emptyset.errors import RunFolderError
from emptyset.graph.memory import BYTES_PER_GIGABYTE
from emptyset.images.image_source import Images

# Python, torch and a compiler's memory; seen with ResNet-18 and ResNet-50 at 224 x 224.
_PROCESS_BYTES = 1 << 30
# Mapped pages count as the process's memory until they are given back [bytes].
_GIVE_BACK_EVERY = 32 << 20
_ON_A_DISK = Path("/var/tmp")


def gigabytes(size: int) -> str:
    """``1.25 GB``."""
    return f"{size / BYTES_PER_GIGABYTE:.2f} GB"


def bytes_held(images: Images) -> int:
    """Bytes of a set of images in memory; 0 for one that is read from a disk."""
    held = getattr(images, "images", None)
    return held.numel() * held.element_size() if isinstance(held, Tensor) else 0


def free_on_accelerator(device: torch.device) -> int | None:
    """Bytes that can still be allocated there; None where tensors lie in the host's memory."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    # What torch holds back for its next tensors is free, too.
    held_back = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + held_back)


def room_left(device: torch.device, memory: float, *, images: int, working: int) -> int:
    """Bytes that may be held of all images where they are used, at least 0.

    On a CPU that is what everything else leaves of the process; on an accelerator what is free
    there, whatever the process may take of the host.

    Args:
        device: Where they are used.
        memory: For all of the process [GB].
        images: Bytes of the images in the host's memory.
        working: Bytes that computing takes on the device.
    """
    free = free_on_accelerator(device)
    if free is None:
        free = int(memory * BYTES_PER_GIGABYTE) - _PROCESS_BYTES - images
    return max(0, free - working)


def file_folder() -> Path:
    """The folder that files lie in."""
    named = any(os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    if not named and os.access(_ON_A_DISK, os.W_OK | os.X_OK):
        return _ON_A_DISK
    return Path(tempfile.gettempdir())


class MappedFile:
    """A file without a name, mapped into memory.

    Args:
        size: Its bytes; all of them are claimed at once: a full disk must not show as a crash in
            the middle of a write.

    Raises:
        RunFolderError: If the disk refuses; it says what to do.
    """

    def __init__(self, size: int) -> None:
        folder = file_folder()
        try:
            # The map keeps it open; when that goes, the system takes its room back.
            with tempfile.TemporaryFile(dir=folder) as stream:
                _claim(stream.fileno(), max(size, 1))
                self._map = mmap.mmap(stream.fileno(), max(size, 1))
        except OSError as error:
            raise RunFolderError(
                f"{folder}: no room for {gigabytes(size)} of activations that do not fit into "
                f"memory ({error.strerror}). Free some space there, set TMPDIR to a folder on a "
                "larger disk, or allow more memory, and run the same command again."
            ) from error
        self._touched = 0

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype, start: int = 0) -> Tensor:
        """A tensor that lies in the file from byte ``start`` on, shared with it."""
        count = torch.Size(shape).numel()
        size = count * dtype.itemsize
        values = np.frombuffer(self._map, dtype=np.uint8, count=size, offset=start)
        return torch.from_numpy(values).view(dtype).view(shape)

    def touched(self, size: int) -> None:
        """Count bytes read or written, and let the system forget pages; they stay in the file."""
        self._touched += size
        if self._touched >= _GIVE_BACK_EVERY:
            self._touched = 0
            if hasattr(mmap, "MADV_DONTNEED"):
                self._map.madvise(mmap.MADV_DONTNEED)


def _claim(descriptor: int, size: int) -> None:
    """Make room in the file, zeros."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)
