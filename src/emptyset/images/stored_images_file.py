"""A stored image set, read in slices instead of as a whole."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from emptyset.errors import ImagesError
from emptyset.images.image_set import CARD_NAME, FILE_NAME
from emptyset.images.preprocessing import Preprocessing


class StoredImagesFile:
    """What ``ImageSet.save`` wrote, batch by batch."""

    labels: Tensor | None
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
        if len(shape) != 4 or shape[1:] != spec.shape:
            raise ImagesError(
                f"{folder}: stored images have shape {shape[1:]}, the teacher takes "
                f"{spec.shape}. They are in normalised units and cannot be resized; make them "
                "again for this teacher."
            )
        self._count = int(shape[0])
        # Probabilities are targets to train with, not labels to count right answers by.
        self.labels = targets if targets is not None and targets.dim() == 1 else None
        self.history = tuple(card.get("history", ()))

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
