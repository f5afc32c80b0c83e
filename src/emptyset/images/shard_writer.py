"""An image set written as WebDataset shards, batch by batch; how they look: ``shards.py``."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from torch import Tensor

from emptyset.errors import ImagesError
from emptyset.images.image_set import CARD_NAME, Batch, ImageSet, write_card
from emptyset.images.image_writer import ImageSetWriter
from emptyset.images.pieces import Pieces
from emptyset.images.shard_names import KIND, shard_name


class ShardWriter:
    """Writes ``images-000000.tar`` and so on, aside and renamed; the card comes last.

    A context manager: what was not finished when the block ends is removed.

    Args:
        folder: Where shards and card go; made if it is not there.
        count: Images that will be given.
        per_shard: Images of one shard; the last one may hold fewer.

    Raises:
        ImagesError: If ``per_shard`` is below 1.
    """

    def __init__(self, folder: Path, count: int, *, per_shard: int) -> None:
        if per_shard < 1:
            raise ImagesError(f"A shard needs at least 1 image. Got {per_shard} per shard.")
        self._folder, self._count, self._per_shard = folder, count, per_shard
        self._pieces = Pieces(folder, count)
        self._target_type: str | None = None
        self._next = 0
        self._archive: tarfile.TarFile | None = None
        self._aside: list[Path] = []

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove unfinished shards."""
        self._close()
        for path in self._aside:
            path.unlink(missing_ok=True)

    def add(self, batch: Batch, scores: Mapping[str, Tensor] | None = None) -> None:
        """Write some images.

        Args:
            batch: Images ``(N, C, H, W)`` and targets, of the same shapes and types every time.
            scores: ``(N,)`` each, by name.

        Raises:
            ImagesError: If these are no images, are more than were announced, or differ from the
                earlier ones in shape, or in their targets.
        """
        self._pieces.add(batch)
        if batch.targets is not None:
            self._target_type = str(batch.targets.dtype).removeprefix("torch.")
        for index, image in enumerate(batch.images):
            told: dict[str, Any] = {
                "scores": {name: values[index].item() for name, values in (scores or {}).items()}
            }
            if batch.targets is not None:
                told["target"] = batch.targets[index].tolist()
            self._write(image, told)

    def finish(self, history: tuple[dict[str, Any], ...]) -> dict[str, Any]:
        """Give all files their names.

        Args:
            history: What made the images, as ``ImageSet.history``.

        Returns:
            The card: that of an image set, with ``kind``, ``shards`` and ``target_dtype``.

        Raises:
            ImagesError: If fewer images were given than were announced.
        """
        digest, _ = self._pieces.finish()
        self._close()
        for number, path in enumerate(self._aside):
            path.replace(self._folder / shard_name(number))
        more = {"kind": KIND, "shards": len(self._aside), "target_dtype": self._target_type}
        self._aside = []
        return write_card(
            self._folder / CARD_NAME, self._count, self._pieces.shape, digest, history, more=more
        )

    def _write(self, image_CHW: Tensor, told: dict[str, Any]) -> None:
        """One sample, in a new shard where the last one is full."""
        if self._next % self._per_shard == 0:
            self._begin()
        assert self._archive is not None
        pixels = io.BytesIO()
        np.save(pixels, image_CHW.contiguous().numpy())
        for suffix, data in (("npy", pixels.getvalue()), ("json", json.dumps(told).encode())):
            # No time and no owner: the same images give the same bytes.
            member = tarfile.TarInfo(f"{self._next:09d}.{suffix}")
            member.size = len(data)
            self._archive.addfile(member, io.BytesIO(data))
        self._next += 1

    def _begin(self) -> None:
        self._close()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._aside.append(self._folder / f".{shard_name(len(self._aside))}.part")
        self._archive = tarfile.TarFile(self._aside[-1], "w")

    def _close(self) -> None:
        if self._archive is not None:
            self._archive.close()
            self._archive = None


def writer_for(
    folder: Path, count: int, *, per_shard: int | None = None
) -> ImageSetWriter | ShardWriter:
    """What stores images while they are made: in one file, or in shards.

    Args:
        folder: Where files and card go.
        count: Images that will be given.
        per_shard: Images of one shard; None: one file.

    Raises:
        ImagesError: If ``per_shard`` is below 1.
    """
    if per_shard is None:
        return ImageSetWriter(folder, count)
    return ShardWriter(folder, count, per_shard=per_shard)


def write_shards(images: ImageSet, folder: Path, *, per_shard: int = 1000) -> dict[str, Any]:
    """Write a set that is in memory; its scores are kept.

    Args:
        images: The set.
        folder: Where shards and card go.
        per_shard: Images of one shard.

    Returns:
        What the card holds.

    Raises:
        ImagesError: If ``per_shard`` is below 1.
    """
    with ShardWriter(folder, len(images), per_shard=per_shard) as writer:
        writer.add(Batch(images.images, images.targets), images.scores)
        return writer.finish(images.history)
