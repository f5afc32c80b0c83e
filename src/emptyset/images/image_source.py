"""Where a refiner draws its images from: a stored set, or a generator trained beside it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from emptyset.images.image_set import Batch, ImageSet
from emptyset.monitor import Monitor, State


@dataclass(frozen=True)
class Lesson(Batch):
    """A batch of a live source, with what the source knows of it.

    Attributes:
        teacher_logits: ``(N, K)`` where the source asked the teacher already, without gradients.
        student_learns: Whether the student is to learn from it.
        source_learns: Whether the source is to hear what both say of it. The images then ask for
            gradients, and what is said must carry the graph back to them.
    """

    teacher_logits: Tensor | None = None
    student_learns: bool = True
    source_learns: bool = False


@dataclass(frozen=True)
class Disagreement:
    """What teacher and student said about one batch.

    Attributes:
        batch: The images, as they were shown.
        teacher_logits: ``(N, K)``.
        student_logits: ``(N, K)``.
        teacher_features: Outputs of the teacher's stages, where the source needs them.
        student_features: The same of the student.
    """

    batch: Batch
    teacher_logits: Tensor
    student_logits: Tensor
    teacher_features: tuple[Tensor, ...] = ()
    student_features: tuple[Tensor, ...] = ()


@runtime_checkable
class Images(Protocol):
    """Anything that gives images in batches: a set in memory, or a stream of files."""

    def __len__(self) -> int:
        """How many there are."""

    def batches(self, size: int) -> Iterator[Batch]:
        """All of them, in order."""


class ImageSource(Protocol):
    """Gives batches; may learn from what teacher and student made of them."""

    def next_batch(self, size: int) -> Batch:
        """``size`` images, in the teacher's normalised units."""

    def learn_from(self, outcome: Disagreement) -> None:
        """The one way back: a generator trained beside the student uses it."""

    def state(self) -> State:
        """What a killed run needs to go on with the same batches."""

    def load_state(self, state: State) -> None:
        """Go on from what ``state`` gave."""


@dataclass(frozen=True)
class Fault:
    """What went wrong in a live source first.

    Attributes:
        term: Name of the loss term (or of the images) that was not finite.
        lessons_ago: How many batches were begun since, that one included; at least 1.
    """

    term: str
    lessons_ago: int


@runtime_checkable
class LiveSource(Protocol):
    """An image source that makes its images, and learns to make better ones; its lessons are new.

    Attributes:
        needs_student: Whether it learns from what the student says, not from the teacher alone.
        needs_features: Whether it also needs the outputs of both networks' stages.
        labelled: Whether its images have targets.
    """

    needs_student: bool
    needs_features: bool
    labelled: bool

    def begin(
        self, lessons: int, batch_size: int, *, precision: str = "auto", monitor: Monitor
    ) -> None:
        """Told before the first batch: how many there will be, and of how many images.

        Of a source that has been trained before, the schedule begins anew.

        Args:
            lessons: Batches to come.
            batch_size: Images in each.
            precision: Of its products: ``float32``, ``bfloat16``, or ``auto``: what is faster.
            monitor: Hears of what takes long.
        """

    def next_batch(self, size: int) -> Lesson:
        """``size`` new images; a source that learns from the teacher alone learns here."""

    def learn_from(self, outcome: Disagreement) -> None:
        """Learn from a lesson with ``source_learns``; called before the student changes."""

    def drawn(self, count: int, *, seed: int) -> ImageSet:
        """``count`` images as it makes them now; changes nothing."""

    def fault(self) -> Fault | None:
        """What stopped being finite first, or None. Waits for the device."""

    def state(self) -> State:
        """What a killed run needs to go on with the same batches."""

    def load_state(self, state: State) -> None:
        """Go on from what ``state`` gave."""


class StoredImages:
    """Draws from a stored set: every epoch each image once, in a new order. Learns nothing."""

    def __init__(self, images: ImageSet, *, seed: int) -> None:
        self.images = images
        self._generator = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.long)

    def next_batch(self, size: int) -> Batch:
        """``size`` images; an epoch's rest is filled up from the next epoch."""
        while len(self._order) < size:
            order = torch.randperm(len(self.images), generator=self._generator)
            self._order = torch.cat([self._order, order])
        chosen, self._order = self._order[:size], self._order[size:]
        targets = self.images.targets
        return Batch(self.images.images[chosen], None if targets is None else targets[chosen])

    def learn_from(self, outcome: Disagreement) -> None:
        """A stored set learns nothing."""

    def state(self) -> State:
        """What is left of this epoch's order, and where the random numbers stand."""
        return {"order": self._order.clone(), "random": self._generator.get_state()}

    def load_state(self, state: State) -> None:
        """Go on from what ``state`` gave."""
        self._order = state["order"].clone()
        self._generator.set_state(state["random"])
