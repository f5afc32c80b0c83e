"""Image sets as WebDataset shards: plain tar files that any WebDataset reader understands.

Sample ``000000042`` is ``000000042.npy`` (float32 ``(C, H, W)`` [teacher's normalised units]) and
``000000042.json`` (``target`` where there are targets, ``scores``). ``card.json`` beside the
shards holds count, shape, number of shards, digest and history; ``shard_writer.py`` writes all.
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
from emptyset.images.image_set import CARD_NAME, ImageSet
from emptyset.images.shard_names import KIND, shard_name

_DAMAGE = (OSError, EOFError, KeyError, TypeError, ValueError, tarfile.TarError)


@dataclass(frozen=True)
class _Place:
    """Where the ``.npy`` of an image lies."""

    path: Path
    start: int
    length: int


@dataclass(frozen=True)
class ShardedImages:
    """Shards whose headers were read; pixels are read while they are used.

    Attributes:
        path: The folder, or one of its shards.
        shape: ``(C, H, W)`` of an image.
        targets: ``(N,)`` class indices, ``(N, K)`` probabilities, or None.
        scores: One ``(N,)`` tensor per score.
        history: What made the images.
        digest: What ``ImageSet.digest`` gave; None where only one shard was opened.
        places: Where the pixels of each image lie.
    """

    path: Path
    shape: tuple[int, ...]
    targets: Tensor | None
    scores: dict[str, Tensor]
    history: tuple[dict[str, Any], ...]
    digest: str | None
    places: tuple[_Place, ...]

    def __len__(self) -> int:
        return len(self.places)

    def read(self, indices: Tensor, size: int) -> Iterator[Tensor]:
        """Batches of the images at ``indices``, ``(N, C, H, W)`` float32.

        Raises:
            ImagesError: If a shard is gone or damaged, or holds NaN or infinity.
        """
        for chosen in torch.split(indices, size):
            images = torch.stack([self._image(self.places[i]) for i in chosen.tolist()])
            if not bool(torch.isfinite(images).all()):
                raise ImagesError(
                    f"{self.path}: images {int(chosen[0])} to {int(chosen[-1])} hold NaN or "
                    "infinity. Make the set again."
                )
            yield images

    def image_set(self) -> ImageSet:
        """Everything in memory, checked against the digest.

        Raises:
            ImagesError: As ``read``, and if the images are not those that were written.
        """
        images = torch.cat(list(self.read(torch.arange(len(self)), 256)))
        loaded = ImageSet(images, self.targets, self.scores, self.history)
        if self.digest is not None and loaded.digest() != self.digest:
            raise ImagesError(f"{self.path}: the images are not those that the card names.")
        return loaded

    def _image(self, place: _Place) -> Tensor:
        try:
            with place.path.open("rb") as file:
                file.seek(place.start)
                content = io.BytesIO(file.read(place.length))
            image = torch.from_numpy(np.load(content, allow_pickle=False))
        except _DAMAGE as error:
            raise _unreadable(place.path, error) from error
        if tuple(image.shape) != self.shape or image.dtype != torch.float32:
            found = f"an image of shape {tuple(image.shape)} and type {image.dtype}"
            raise _unreadable(place.path, found)
        return image


def holds_shards(path: Path) -> bool:
    """Whether ``path`` is a folder of finished shards, or one of them."""
    if path.is_file() and path.suffix != ".tar":
        return False
    try:
        _card(_folder(path))
    except ImagesError:
        return False
    return True


def read_shards(path: Path) -> ShardedImages:
    """Open what ``ShardWriter`` wrote.

    Args:
        path: The folder, or one of its shards: then only the images of this one.

    Raises:
        ImagesError: If the card is missing or names something else, a shard is missing or damaged,
            or they do not hold as many images as the card names.
    """
    folder = _folder(path)
    card = _card(folder)
    try:
        shape, count, shards = tuple(card["shape"]), int(card["count"]), int(card["shards"])
        kind, history = card["target_dtype"], tuple(card["history"])
        kind = None if kind is None else getattr(torch, kind)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ImagesError(f"{folder}: {CARD_NAME} is not complete ({error!r}).") from error
    whole = path == folder
    paths = [folder / shard_name(number) for number in range(shards)] if whole else [path]
    places: list[_Place] = []
    told: list[dict[str, Any]] = []
    targets: list[Tensor] = []
    for one in paths:
        found = _scanned(one)
        places += [place for place, _ in found]
        told += [sample["scores"] for _, sample in found]
        if kind is not None:
            targets.append(_targets(one, [sample for _, sample in found], kind))
    if not places or (whole and len(places) != count):
        raise ImagesError(f"{path}: the card names {count} images, the shards hold {len(places)}.")
    return ShardedImages(
        path,
        shape,
        torch.cat(targets) if targets else None,
        {name: torch.tensor([scores[name] for scores in told]) for name in told[0]},
        history,
        card["digest"] if whole else None,
        tuple(places),
    )


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _card(folder: Path) -> dict[str, Any]:
    try:
        card = json.loads((folder / CARD_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ImagesError(
            f"{folder}: not a folder of finished shards ({error}). Expected {shard_name(0)} and "
            f"on, and {CARD_NAME}, as `emptyset synthesize --shards N` writes them. Shards of "
            "others are not read: unpack their photos into a folder."
        ) from error
    if not isinstance(card, dict) or card.get("kind") != KIND:
        raise ImagesError(f"{folder}: {CARD_NAME} does not describe {KIND}.")
    return card


def _scanned(path: Path) -> list[tuple[_Place, dict[str, Any]]]:
    """Where the images of a shard lie, and what is told of each; no pixel is read."""
    found = []
    try:
        with tarfile.open(path, "r:") as archive:
            while (image := archive.next()) is not None:
                told = archive.next()
                key, _, suffix = image.name.rpartition(".")
                if suffix != "npy" or told is None or told.name != f"{key}.json":
                    raise tarfile.ReadError(f"no {key}.json behind {image.name}")
                file = archive.extractfile(told)
                sample = json.loads(b"" if file is None else file.read())
                sample["scores"] = dict(sample["scores"])
                found.append((_Place(path, image.offset_data, image.size), sample))
    except _DAMAGE as error:
        raise _unreadable(path, error) from error
    return found


def _targets(path: Path, samples: list[dict[str, Any]], kind: torch.dtype) -> Tensor:
    try:
        return torch.tensor([sample["target"] for sample in samples], dtype=kind)
    except _DAMAGE as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: object) -> ImagesError:
    return ImagesError(f"{path}: not a readable shard ({error}).")
