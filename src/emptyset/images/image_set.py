"""A stored set of images, with what is known about each, and where it came from."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from emptyset.errors import ImagesError
from emptyset.images.shard_names import KIND, shard_name

FILE_NAME = "images.safetensors"
CARD_NAME = "card.json"


@dataclass(frozen=True)
class Batch:
    """Some images and, where there are any, their targets.

    Attributes:
        images: ``(N, C, H, W)`` float32 [teacher's normalised units].
        targets: ``(N,)`` class indices, ``(N, K)`` probabilities, or None.
    """

    images: Tensor
    targets: Tensor | None


@dataclass(frozen=True)
class ImageSet:
    """Images in the teacher's normalised units, never silently random.

    Attributes:
        images: ``(N, C, H, W)`` float32 [teacher's normalised units], finite.
        targets: ``(N,)`` class indices, ``(N, K)`` probabilities, or None.
        scores: One ``(N,)`` tensor per score that a selector gave.
        history: What was done to make the set, oldest first; each entry is JSON data with at
            least ``stage`` and ``method`` (settings, seed, teacher hash, count, seconds ...).
    """

    images: Tensor
    targets: Tensor | None = None
    scores: dict[str, Tensor] = field(default_factory=dict)
    history: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        images = self.images
        if images.dim() != 4 or images.dtype != torch.float32:
            raise ImagesError(
                "Images must be float32 of shape (N, C, H, W). Got "
                f"{images.dtype} of shape {tuple(images.shape)}."
            )
        if len(images) == 0:
            raise ImagesError("An image set needs at least one image. Got none.")
        bad = [i for i, image in enumerate(images) if not bool(torch.isfinite(image).all())]
        if bad:
            raise ImagesError(
                f"{len(bad)} of {len(images)} images hold NaN or infinity (first: image "
                f"{bad[0]}). Remove them, or find out which step made them."
            )
        for name, values in [("targets", self.targets), *self.scores.items()]:
            if values is not None and len(values) != len(images):
                raise ImagesError(f"{len(images)} images, but {len(values)} {name}.")

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, size: int) -> Iterator[Batch]:
        """All images in order, ``size`` at a time; the last batch may be smaller."""
        for start in range(0, len(self), size):
            stop = start + size
            targets = None if self.targets is None else self.targets[start:stop]
            yield Batch(self.images[start:stop], targets)

    def subset(self, indices: Tensor, *, entry: dict[str, Any] | None = None) -> "ImageSet":
        """The images at ``indices`` (``(M,)``), with their targets and scores."""
        return ImageSet(
            self.images[indices],
            None if self.targets is None else self.targets[indices],
            {name: values[indices] for name, values in self.scores.items()},
            self.history + ((entry,) if entry else ()),
        )

    def with_entry(self, entry: dict[str, Any]) -> "ImageSet":
        """The same images, with one more entry in the history."""
        return replace(self, history=(*self.history, entry))

    def digest(self) -> str:
        """SHA-256 over images and targets, hexadecimal."""
        digest = hashlib.sha256(values_of(self.images))
        if self.targets is not None:
            digest.update(values_of(self.targets))
        return digest.hexdigest()

    def save(self, folder: Path) -> dict[str, Any]:
        """Write ``images.safetensors`` and ``card.json`` into ``folder``, aside and renamed.

        Returns:
            What the card holds.
        """
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"images": self.images.contiguous()}
        if self.targets is not None:
            tensors["targets"] = self.targets.contiguous()
        tensors |= {f"score.{name}": v.contiguous() for name, v in self.scores.items()}
        aside = folder / f".{FILE_NAME}.part"
        save_file(tensors, aside)
        aside.replace(folder / FILE_NAME)
        shape = list(self.images.shape[1:])
        return write_card(folder / CARD_NAME, len(self), shape, self.digest(), self.history)

    @staticmethod
    def load(folder: Path) -> "ImageSet":
        """Read what ``save`` wrote, or shards.

        Raises:
            ImagesError: If a file is missing, truncated or not an image set.
        """
        from emptyset.images.shards import holds_shards, read_shards

        if holds_shards(folder):
            return read_shards(folder).image_set()
        path = folder / FILE_NAME if folder.is_dir() else folder
        try:
            tensors = load_file(path)
            card = json.loads((path.parent / CARD_NAME).read_text(encoding="utf-8"))
        except (OSError, SafetensorError, json.JSONDecodeError) as error:
            raise ImagesError(
                f"{path}: not a readable image set ({error}). Expected {FILE_NAME} with "
                f"{CARD_NAME} beside it, as `emptyset synthesize --out DIR` writes them."
            ) from error
        if "images" not in tensors:
            raise ImagesError(f"{path}: holds no tensor named 'images'.")
        scores = {k.removeprefix("score."): v for k, v in tensors.items() if k.startswith("score.")}
        return ImageSet(tensors["images"], tensors.get("targets"), scores, tuple(card["history"]))


def values_of(tensor: Tensor) -> memoryview:
    """The values of a CPU tensor in their order, without a copy where they lie in one piece."""
    return tensor.contiguous().numpy().data


def write_card(
    path: Path,
    count: int,
    shape: list[int],
    digest: str,
    history: tuple[dict[str, Any], ...],
    *,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write what is told about a stored set, aside and renamed.

    Files of the set that was there before are removed, as far as the new one has not replaced them.

    Args:
        path: The card.
        count: Images.
        shape: ``[C, H, W]`` of an image.
        digest: Of images and targets, as ``ImageSet.digest``.
        history: As ``ImageSet.history``.
        more: What else is told; of shards ``kind``, ``shards`` and ``target_dtype``.

    Returns:
        What was written.
    """
    card = {
        "count": count,
        "shape": shape,
        "units": "teacher's normalised units",
        "digest": digest,
        "history": list(history),
        **(more or {}),
    }
    replaced = _files_of_card(path) - _files_of(card)
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    aside.replace(path)
    for name in replaced:
        (path.parent / name).unlink(missing_ok=True)
    return card


def _files_of_card(path: Path) -> set[str]:
    """Names of the files that the card at ``path`` stands for, if there is one."""
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    return _files_of(card) if isinstance(card, dict) else set()


def _files_of(card: dict[str, Any]) -> set[str]:
    if card.get("kind") != KIND:
        return {FILE_NAME}
    return {shard_name(number) for number in range(card["shards"])}
