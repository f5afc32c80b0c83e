"""The judge of all rows: every student sees the same images, and each network sees them once."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emptyset import measurement
from emptyset.evaluate.accuracy import Predict, accuracy
from emptyset.evaluate.agreement import agreement
from emptyset.graph.memory import largest_batch
from emptyset.images.image_set import Batch
from emptyset.images.image_source import Images
from emptyset.job.image_stages import KnownImages
from emptyset.monitor import Monitor
from emptyset.teachers.teacher import Teacher

if TYPE_CHECKING:
    from emptyset.graph.student import Student


@dataclass
class Judge:
    """Compares students with one teacher.

    Attributes:
        teacher: The trained network.
        judged: The images; none of them was used to fit a student.
        seed: Seed of the bootstrap.
        memory: Memory that forwards of a student may take [GB].
    """

    teacher: Teacher
    judged: KnownImages
    seed: int
    memory: float | None = None
    _teacher_logits: Tensor | None = field(default=None, repr=False)

    def measure(self, student: "Student", monitor: Monitor) -> dict[str, Any]:
        """Agreement, and top-1 and top-5 of both where there are labels; JSON data.

        Args:
            student: Refined.
            monitor: Hears of progress.
        """
        size = measurement.batch_size_for(self.teacher.input.shape)
        images: Images = self.judged.images
        if self._teacher_logits is None:
            expected = measurement.predictor(self.teacher)
            self._teacher_logits = _logits(expected, images, size, monitor, "teacher")
        if self.memory is not None:
            size = largest_batch(student, self.memory, at_most=size)
        answers = _logits(measurement.predictor(student), images, size, monitor, "student")
        said = Answers(self._labels())
        teacher, quantized = said.of(self._teacher_logits), said.of(answers)
        found = {
            "count": len(images),
            "agreement": agreement(quantized, teacher, said, seed=self.seed).to_json(),
            "teacher": None,
            "quantized": None,
        }
        if self.judged.labelled:
            found["teacher"] = accuracy(teacher, said).to_json()
            found["quantized"] = accuracy(quantized, said).to_json()
        return found

    def _labels(self) -> Tensor:
        """``(N,)`` class indices; zeros, which nobody reads, where there are none."""
        images = self.judged.images
        labels = images.labels if hasattr(images, "labels") else images.targets
        if labels is None or not self.judged.labelled:
            return torch.zeros(len(images), dtype=torch.long)
        return labels


class Answers:
    """Positions that stand for images, so that measures read answers given before."""

    def __init__(self, labels_N: Tensor) -> None:
        self._labels = labels_N

    def __len__(self) -> int:
        return len(self._labels)

    def batches(self, size: int) -> Iterator[Batch]:
        """All positions in order, with the labels of their images."""
        positions = torch.arange(len(self))
        for start in range(0, len(self), size):
            stop = start + size
            yield Batch(positions[start:stop], self._labels[start:stop])

    def of(self, logits_NK: Tensor) -> Predict:
        """A network that gives the answers it gave before."""
        return lambda positions: logits_NK[positions]


@torch.no_grad()
def _logits(predict: Predict, images: Images, size: int, monitor: Monitor, who: str) -> Tensor:
    """``(N, K)`` answers to all images."""
    answers: list[Tensor] = []
    done = 0
    for batch in images.batches(size):
        answers.append(predict(batch.images))
        done += len(batch.images)
        monitor.advance(f"{who}'s answers", done, len(images))
    return torch.cat(answers)
