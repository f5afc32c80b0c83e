"""Images of an ``.npz`` file, read row by row: the array is never held as a whole."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from numpy.lib import format as npy
from PIL import Image
from torch import Tensor

from emptyset.errors import ImagesError
from emptyset.images.photos import pixels_of
from emptyset.images.preprocessing import Preprocessing

_EXPECTED = (
    "Expected an .npz with 'images', uint8 of shape (N, H, W, C) or (N, H, W), and optionally "
    "'labels', integers of shape (N,)."
)


class NpzImages:
    """``images`` and ``labels`` of one file."""

    def __init__(self, path: Path, spec: Preprocessing) -> None:
        self._path, self._spec = path, spec
        self._shape = self._image_shape()
        self.labels = self._read_labels()

    def __len__(self) -> int:
        return self._shape[0]

    def read(self, indices: Tensor, size: int) -> Iterator[Tensor]:
        """Batches of the images at ``indices`` (ascending), ``(N, C, H, W)`` float32."""
        wanted = indices.tolist()
        row_bytes = int(np.prod(self._shape[1:]))
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open("images.npy") as file:
                _header(cast(BinaryIO, file))
                position = 0
                for start in range(0, len(wanted), size):
                    rows = []
                    for index in wanted[start : start + size]:
                        _skip(file, (index - position) * row_bytes)
                        rows.append(self._row(file.read(row_bytes), row_bytes))
                        position = index + 1
                    yield self._spec.normalise(self._pixels(np.stack(rows)))
        except (OSError, EOFError, zipfile.BadZipFile, ValueError) as error:
            if isinstance(error, ImagesError):
                raise
            raise ImagesError(f"{self._path}: cannot be read ({error}). {_EXPECTED}") from error

    def _row(self, data: bytes, row_bytes: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        if len(data) != row_bytes:
            raise ImagesError(f"{self._path}: 'images' ends early; the file is truncated.")
        return np.frombuffer(data, np.uint8).reshape(self._shape[1:])

    def _pixels(self, rows: "np.ndarray[Any, np.dtype[np.uint8]]") -> Tensor:
        channels, height, width = self._spec.shape
        if self._shape[1:3] != (height, width):
            grey = channels == 1
            photos = [Image.fromarray(row[..., 0] if grey else row) for row in rows]
            return torch.stack([pixels_of(photo, self._spec) for photo in photos])
        return torch.from_numpy(rows).permute(0, 3, 1, 2).float() / 255.0

    def _image_shape(self) -> tuple[int, int, int, int]:
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open("images.npy") as file:
                shape, fortran, dtype = _header(cast(BinaryIO, file))
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ImagesError(f"{self._path}: cannot be read ({error}). {_EXPECTED}") from error
        if dtype != np.uint8 or fortran or len(shape) not in (3, 4):
            raise ImagesError(
                f"{self._path}: 'images' is {dtype} of shape {shape}"
                f"{' in Fortran order' if fortran else ''}. {_EXPECTED}"
            )
        if shape[0] == 0:
            raise ImagesError(f"{self._path}: 'images' is empty, shape {shape}.")
        count, height, width, channels = (*shape, 1)[:4]
        wanted, tall, wide = self._spec.shape
        if channels != wanted:
            raise ImagesError(
                f"{self._path}: the images have {channels} channels, the teacher takes {wanted}. "
                f"Convert them to {wanted} channels."
            )
        if (height, width) != (tall, wide) and channels not in (1, 3):
            raise ImagesError(
                f"{self._path}: images of {height}×{width} cannot be resized to the teacher's "
                f"{tall}×{wide}: only 1 or 3 channels can. Resize them beforehand."
            )
        return count, height, width, channels

    def _read_labels(self) -> Tensor | None:
        try:
            with np.load(self._path, allow_pickle=False) as arrays:
                labels = arrays.get("labels")
        except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
            raise ImagesError(f"{self._path}: cannot be read ({error}). {_EXPECTED}") from error
        if labels is None:
            return None
        if labels.shape != (len(self),) or labels.dtype.kind not in "iu":
            raise ImagesError(
                f"{self._path}: {len(self)} images, but 'labels' is {labels.dtype} of shape "
                f"{labels.shape}. {_EXPECTED}"
            )
        return torch.from_numpy(labels.astype(np.int64))


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, "np.dtype[Any]"]:
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return shape, fortran, dtype


def _skip(file: Any, count: int) -> None:
    # A compressed member can only be read through; 1 MB at a time keeps memory flat.
    while count > 0:
        count -= len(file.read(min(count, 1 << 20))) or count
