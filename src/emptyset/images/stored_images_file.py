"""A stored image set, read in slices instead of as a whole."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from emptyset.errors import ImagesError
from emptyset.images.image_set import CARD_NAME, FILE_NAME
from emptyset.images.preprocessing import Preprocessing, other_constants


class StoredImagesFile:
    """What ``ImageSet.save`` wrote, batch by batch.

    Attributes:
        targets: ``(N,)`` class indices, ``(N, K)`` probabilities, or None.
        history: What made the images.
    """

    targets: Tensor | None
    history: tuple[dict[str, Any], ...]

    def __init__(self, folder: Path, spec: Preprocessing) -> None:
        self._file = folder / FILE_NAME
        try:
            card = json.loads((folder / CARD_NAME).read_text(encoding="utf-8"))
            with safe_open(self._file, framework="pt") as tensors:
                names = set(tensors.keys())
                shape = tuple(tensors.get_slice("images").get_shape())
                targets = tensors.get_tensor("targets") if "targets" in names else None
        except (OSError, SafetensorError, json.JSONDecodeError) as error:
            raise ImagesError(
                f"{folder}: not a readable image set ({error}). Expected {FILE_NAME} with "
                f"{CARD_NAME} beside it, as `emptyset synthesize --out DIR` writes them."
            ) from error
        history = tuple(card.get("history", ()))
        require_stored_for(folder, shape[1:], history, spec)
        self._count = int(shape[0])
        self.targets = targets
        self.history = history

    def __len__(self) -> int:
        return self._count

    def read(self, indices: Tensor, size: int) -> Iterator[Tensor]:
        """Batches of the images at ``indices`` (ascending), ``(N, C, H, W)`` float32."""
        for chosen in torch.split(indices, size):
            first, last = int(chosen[0]), int(chosen[-1])
            with safe_open(self._file, framework="pt") as tensors:
                stored = tensors.get_slice("images")
                if last - first + 1 == len(chosen):
                    images = stored[first : last + 1]
                else:
                    images = torch.cat([stored[i : i + 1] for i in chosen.tolist()])
            if not bool(torch.isfinite(images).all()):
                raise ImagesError(
                    f"{self._file}: images {first} to {last} hold NaN or infinity. Make the set "
                    "again."
                )
            yield images


def require_stored_for(
    path: Path,
    shape: tuple[int, ...],
    history: Sequence[Mapping[str, Any]],
    spec: Preprocessing,
) -> None:
    """Refuse stored images that a network does not take.

    Args:
        path: Where they are, for the message.
        shape: Of one image.
        history: Of the set; who made it tells for which normalisation. Older sets do not tell.
        spec: What the network takes.

    Raises:
        ImagesError: If the shape or the normalisation is another.
    """
    if shape != spec.shape:
        raise ImagesError(
            f"{path}: stored images have shape {shape}, the teacher takes {spec.shape}. They are "
            "in normalised units and cannot be resized; make them again for this teacher."
        )
    for entry in history:
        if (other := other_constants(entry, spec)) is not None:
            name, made, taken = other
            raise ImagesError(
                f"{path}: these images were made in units of {name} {made}, and the teacher's are "
                f"of {name} {taken}. Give the same --{name} as when they were made, or make them "
                "again."
            )
