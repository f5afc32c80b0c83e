"""A live source in whose batches some images are stored ones, for the student to learn from."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from emptyset.errors import ImagesError
from emptyset.images.image_set import ImageSet
from emptyset.images.image_source import (
    Disagreement,
    Fault,
    Lesson,
    LiveSource,
    StoredImages,
)
from emptyset.images.targets import require_targets
from emptyset.monitor import Monitor, State

_STORED = "stored|"


class WithImagesBeside:
    """A live source; the first images of its lessons for the student are replaced by stored ones.

    The source learns as it would alone. What the teacher says of the stored images is asked anew in
    every batch.

    Attributes:
        source: The one that makes the other images.
        needs_student: Whether it learns from what the student says.
        needs_features: Whether it also needs the outputs of both networks' stages.
        about: What is to be told of the stored images (JSON data).
    """

    def __init__(
        self,
        source: LiveSource,
        images: ImageSet,
        *,
        classes: int,
        share: float,
        seed: int,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Nothing is drawn yet.

        Args:
            source: Makes the other images.
            images: With labels, in the teacher's normalised units.
            classes: Of the teacher, for soft labels.
            share: Of every batch, above 0 and below 1; at least one image, and never all.
            seed: Of the order of the stored images.
            about: What is to be told of them.

        Raises:
            ImagesError: If there are no images, no labels, or labels that are no classes.
            ValueError: If ``share`` cannot be.
        """
        if not 0 < share < 1:
            raise ValueError(f"share must be above 0 and below 1. Got {share}.")
        if len(images) == 0 or images.targets is None:
            raise ImagesError(
                "Images beside a source need labels, and at least one image. "
                f"Got {len(images)} {'without' if images.targets is None else 'with'} labels."
            )
        require_targets(
            images.targets, classes, who="images beside a source", advice="The student learns them."
        )
        self.source, self._classes, self._share = source, classes, share
        self._stored = StoredImages(images, seed=seed)
        self.about = {"real_images_beside": len(images), **(about or {})}
        self.needs_student, self.needs_features = source.needs_student, source.needs_features
        self.labelled = source.labelled

    def begin(
        self, lessons: int, batch_size: int, *, precision: str = "auto", monitor: Monitor
    ) -> None:
        """Told once before the first batch."""
        self.source.begin(lessons, batch_size, precision=precision, monitor=monitor)

    def next_batch(self, size: int) -> Lesson:
        """``size`` images, the stored ones first where the student learns from them.

        Raises:
            ImagesError: If the source learns from the very batch that the student learns from.
        """
        lesson = self.source.next_batch(size)
        if not lesson.student_learns:
            return lesson
        if lesson.source_learns:
            raise ImagesError(
                "This source learns from the same batches as the student, so other images cannot "
                "stand in them. Sources whose batches can hold some learn from the teacher alone, "
                "or by turns with the student, as zaq."
            )
        count = min(max(1, round(self._share * size)), size - 1)
        stored = self._stored.next_batch(count)
        assert stored.targets is not None
        images = torch.cat([stored.images.to(lesson.images), lesson.images[count:]])
        if lesson.targets is None:
            return Lesson(images, None)
        own, made = stored.targets.to(lesson.targets.device), lesson.targets[count:]
        if own.dim() != made.dim():
            own, made = self._soft(own, made), self._soft(made, made)
        return Lesson(images, torch.cat([own.to(made.dtype), made]))

    def _soft(self, targets: Tensor, like: Tensor) -> Tensor:
        """Class indices as probabilities ``(N, K)``; probabilities as they are."""
        if targets.dim() > 1:
            return targets
        hot = torch.nn.functional.one_hot(targets.long(), self._classes)
        return hot.to(like.dtype if like.is_floating_point() else torch.float32)

    def learn_from(self, outcome: Disagreement) -> None:
        """The source's own lessons have no stored images in them."""
        self.source.learn_from(outcome)

    def drawn(self, count: int, *, seed: int) -> ImageSet:
        """Of the source alone."""
        return self.source.drawn(count, seed=seed)

    def fault(self) -> Fault | None:
        """Of the source."""
        return self.source.fault()

    def state(self) -> State:
        """Of both."""
        stored = {f"{_STORED}{name}": value for name, value in self._stored.state().items()}
        return {**self.source.state(), **stored}

    def load_state(self, state: State) -> None:
        """Go on from what ``state`` gave."""
        own = {n.removeprefix(_STORED): v for n, v in state.items() if n.startswith(_STORED)}
        self._stored.load_state(own)
        self.source.load_state({n: v for n, v in state.items() if not n.startswith(_STORED)})
