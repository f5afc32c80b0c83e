"""Image sets as WebDataset shards: plain tar files that any WebDataset reader understands.

Sample ``000000042`` is ``000000042.npy`` (float32 ``(C, H, W)`` [teacher's normalised units]) and
``000000042.json`` (``target`` where there are targets, ``scores``). ``card.json`` beside the
shards holds count, shape, number of shards, digest and history.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emptyset.errors import ImagesError
from emptyset.images.image_set import CARD_NAME, Batch, ImageSet

KIND = "webdataset shards"


def write_shards(images: ImageSet, folder: Path, *, per_shard: int = 1000) -> list[Path]:
    """Write ``images`` into ``folder`` as ``images-000000.tar`` and so on, aside and renamed.

    The card comes last: a folder without one was not finished.

    Raises:
        ImagesError: If ``per_shard`` is below 1.
    """
    if per_shard < 1:
        raise ImagesError(f"A shard needs at least 1 image. Got per_shard={per_shard}.")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for start in range(0, len(images), per_shard):
        path = folder / f"images-{start // per_shard:06d}.tar"
        aside = folder / f".{path.name}.part"
        with tarfile.open(aside, "w") as archive:
            for index in range(start, min(start + per_shard, len(images))):
                _add_sample(archive, images, index)
        aside.replace(path)
        paths.append(path)
    card = {
        "kind": KIND,
        "count": len(images),
        "shape": list(images.images.shape[1:]),
        "shards": len(paths),
        "units": "teacher's normalised units",
        "digest": images.digest(),
        "target_dtype": None if images.targets is None else str(images.targets.dtype)[6:],
        "history": list(images.history),
    }
    aside = folder / f".{CARD_NAME}.part"
    aside.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    aside.replace(folder / CARD_NAME)
    return paths


@dataclass(frozen=True)
class ShardedImages:
    """Shards that are read while they are used; memory does not grow with the count."""

    folder: Path
    card: dict[str, Any]

    def __len__(self) -> int:
        return int(self.card["count"])

    def batches(self, size: int) -> Iterator[Batch]:
        """All images in order, ``size`` at a time; the last batch may be smaller.

        Raises:
            ImagesError: If a shard is missing, truncated or damaged.
        """
        for images, targets, _ in self._chunks(size):
            yield Batch(images, targets)

    def image_set(self) -> ImageSet:
        """Everything in memory, checked against the digest.

        Raises:
            ImagesError: As ``batches``, and if the images are not those that were written.
        """
        chunks = list(self._chunks(256))
        images = torch.cat([chunk[0] for chunk in chunks])
        has_targets = self.card["target_dtype"] is not None
        targets = torch.cat([c[1] for c in chunks if c[1] is not None]) if has_targets else None
        samples = [sample for chunk in chunks for sample in chunk[2]]
        scores = {
            name: torch.tensor([sample["scores"][name] for sample in samples])
            for name in samples[0]["scores"]
        }
        loaded = ImageSet(images, targets, scores, tuple(self.card["history"]))
        if loaded.digest() != self.card["digest"]:
            raise ImagesError(f"{self.folder}: the images are not those that the card names.")
        return loaded

    def _chunks(self, size: int) -> Iterator[tuple[Tensor, Tensor | None, list[dict[str, Any]]]]:
        waiting: list[tuple[Tensor, dict[str, Any]]] = []
        total = 0
        for sample in self._samples():
            waiting.append(sample)
            total += 1
            if len(waiting) == size:
                yield self._chunk(waiting)
                waiting = []
        if waiting:
            yield self._chunk(waiting)
        if total != len(self):
            raise ImagesError(
                f"{self.folder}: the card names {len(self)} images, the shards hold {total}."
            )

    def _chunk(
        self, samples: list[tuple[Tensor, dict[str, Any]]]
    ) -> tuple[Tensor, Tensor | None, list[dict[str, Any]]]:
        images = torch.stack([image for image, _ in samples])
        known = [sample for _, sample in samples]
        dtype = self.card["target_dtype"]
        if dtype is None:
            return images, None, known
        targets = torch.tensor([s["target"] for s in known], dtype=getattr(torch, dtype))
        return images, targets, known

    def _samples(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        for number in range(int(self.card["shards"])):
            path = self.folder / f"images-{number:06d}.tar"
            try:
                with tarfile.open(path) as archive:
                    while (member := archive.next()) is not None:
                        image = np.load(io.BytesIO(_content(archive, member)), allow_pickle=False)
                        member = archive.next()
                        if member is None:
                            raise tarfile.ReadError("an image without its JSON")
                        yield torch.from_numpy(image), json.loads(_content(archive, member))
            except (OSError, EOFError, ValueError, tarfile.TarError) as error:
                raise ImagesError(f"{path}: not a readable shard ({error}).") from error


def read_shards(folder: Path) -> ShardedImages:
    """Open what ``write_shards`` wrote.

    Raises:
        ImagesError: If the card is missing or names something else.
    """
    try:
        card = json.loads((folder / CARD_NAME).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ImagesError(
            f"{folder}: not a folder of finished shards ({error}). Expected images-000000.tar and "
            f"on, and {CARD_NAME}."
        ) from error
    if not isinstance(card, dict) or card.get("kind") != KIND:
        raise ImagesError(f"{folder}: {CARD_NAME} does not describe {KIND}.")
    return ShardedImages(folder, card)


def _add_sample(archive: tarfile.TarFile, images: ImageSet, index: int) -> None:
    buffer = io.BytesIO()
    np.save(buffer, images.images[index].contiguous().numpy())
    sample: dict[str, Any] = {
        "scores": {name: values[index].item() for name, values in images.scores.items()}
    }
    if images.targets is not None:
        sample["target"] = images.targets[index].tolist()
    for suffix, data in (("npy", buffer.getvalue()), ("json", json.dumps(sample).encode())):
        # No time and no owner: the same images give the same bytes.
        member = tarfile.TarInfo(f"{index:09d}.{suffix}")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    if file is None:
        raise tarfile.ReadError(f"{member.name} is no file")
    return file.read()
