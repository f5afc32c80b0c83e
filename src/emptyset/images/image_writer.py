"""An image set that is written batch by batch while it is made; memory does not grow with it."""

import json
from io import BufferedWriter
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from emptyset.images.image_set import CARD_NAME, FILE_NAME, Batch, values_of, write_card
from emptyset.images.pieces import Pieces

# How the safetensors format calls them.
_TYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.int32: "I32"}


class ImageSetWriter:
    """Writes what ``ImageSet.save`` writes, from batches.

    A context manager: what was not finished when the block ends is removed.

    The file is one of the safetensors format (https://github.com/huggingface/safetensors): the
    length of the header in 8 bytes, the header as JSON, the tensors. Images come first and are
    written as they come; targets, which are small, wait for the end.

    Args:
        folder: Where ``images.safetensors`` and ``card.json`` go; made if it is not there.
        count: Images that will be given.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self._folder = folder
        self._count = count
        self._aside = folder / f".{FILE_NAME}.part"
        self._file: BufferedWriter | None = None
        self._pieces = Pieces(folder, count)

    def __enter__(self) -> "ImageSetWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove an unfinished file."""
        if self._file is not None:
            self._file.close()
            self._aside.unlink(missing_ok=True)

    def add(self, batch: Batch) -> None:
        """Write some images.

        Args:
            batch: Images ``(N, C, H, W)`` and targets, of the same shapes and types every time.

        Raises:
            ImagesError: If these are no images, are more than were announced, or differ from the
                earlier ones in shape, or in their targets.
        """
        pixels = self._pieces.add(batch)
        if self._file is None:
            self._begin(batch)
        assert self._file is not None
        self._file.write(pixels)

    def finish(self, history: tuple[dict[str, Any], ...]) -> dict[str, Any]:
        """Write the rest, and give both files their names.

        Args:
            history: What made the images, as ``ImageSet.history``.

        Returns:
            The card: ``count``, ``shape``, ``units``, ``digest``, ``history``.

        Raises:
            ImagesError: If fewer images were given than were announced.
        """
        digest, targets = self._pieces.finish()
        assert self._file is not None
        if targets is not None:
            self._file.write(values_of(targets))
        self._file.close()
        self._file = None
        self._aside.replace(self._folder / FILE_NAME)
        return write_card(
            self._folder / CARD_NAME, self._count, self._pieces.shape, digest, history
        )

    def _begin(self, batch: Batch) -> None:
        """Open the file and write its header, which the first batch decides."""
        header, end = {}, 0
        for name, tensor in (("images", batch.images), ("targets", batch.targets)):
            if tensor is None:
                continue
            shape = [self._count, *tensor.shape[1:]]
            begin, end = end, end + tensor[0].numel() * self._count * tensor.element_size()
            header[name] = {
                "dtype": _TYPES[tensor.dtype], "shape": shape, "data_offsets": [begin, end],
            }  # fmt: skip
        text = json.dumps(header, separators=(",", ":")).encode("ascii")
        # The format wants the tensors to begin at a multiple of 8.
        text += b" " * (-len(text) % 8)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = self._aside.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)
