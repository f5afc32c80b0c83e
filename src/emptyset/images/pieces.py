"""What a set is known by while its images come in batches: count, shape, digest, targets."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from emptyset.errors import ImagesError
from emptyset.images.image_set import Batch, ImageSet, values_of


class Pieces:
    """Checks that the batches of one set belong together, and adds up what its card tells.

    Attributes:
        shape: ``[C, H, W]`` of an image; empty before the first one.
        written: Images so far.
    """

    def __init__(self, folder: Path, count: int) -> None:
        """Nothing came yet.

        Args:
            folder: Where the set goes, for messages.
            count: Images that will be given.
        """
        self._folder, self._count = folder, count
        self._digest = hashlib.sha256()
        self._targets: list[Tensor] = []
        self.shape: list[int] = []
        self.written = 0

    def add(self, batch: Batch) -> memoryview:
        """Take the next batch.

        Args:
            batch: Images ``(N, C, H, W)`` and targets, of the same shapes and types every time.

        Returns:
            The pixels, in their order.

        Raises:
            ImagesError: If these are no images, are more than were announced, or differ from the
                earlier ones in shape, or in their targets.
        """
        checked = ImageSet(batch.images, batch.targets)
        shape = list(checked.images.shape[1:])
        if self.written and shape != self.shape:
            raise ImagesError(
                f"{self._folder}: images of shape {tuple(shape)} after images of shape "
                f"{tuple(self.shape)}. A set holds images of one shape."
            )
        if self.written:
            self._require_same_targets(batch.targets)
        if self.written + len(checked) > self._count:
            raise ImagesError(
                f"{self._folder}: {self._count} images were announced, "
                f"{self.written + len(checked)} came."
            )
        self.shape, self.written = shape, self.written + len(checked)
        pixels = values_of(checked.images)
        self._digest.update(pixels)
        if batch.targets is not None:
            # A copy: a view would keep the whole batch that it belongs to.
            self._targets.append(batch.targets.clone())
        return pixels

    def finish(self) -> tuple[str, Tensor | None]:
        """The digest, as ``ImageSet.digest``, and all targets, where there are any.

        Raises:
            ImagesError: If fewer images were given than were announced.
        """
        if self.written != self._count or not self.written:
            raise ImagesError(
                f"{self._folder}: {self._count} images were announced, {self.written} came."
            )
        targets = torch.cat(self._targets) if self._targets else None
        if targets is not None:
            self._digest.update(values_of(targets))
        return self._digest.hexdigest(), targets

    def _require_same_targets(self, targets: Tensor | None) -> None:
        if (targets is None) != (not self._targets):
            raise ImagesError(
                f"{self._folder}: some images have targets, others have none. Give all or none."
            )
        if targets is None:
            return
        first = self._targets[0]
        if (targets.shape[1:], targets.dtype) != (first.shape[1:], first.dtype):
            raise ImagesError(
                f"{self._folder}: targets {_told(targets)} after targets {_told(first)}. A set "
                "holds targets of one kind."
            )


def _told(targets: Tensor) -> str:
    kind = "probabilities" if targets.dim() > 1 else "class indices"
    return f"that are {kind} ({tuple(targets.shape[1:])}, {targets.dtype})"
