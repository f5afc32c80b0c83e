"""What a quantized network lost against its teacher, on images that it was not fitted to."""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emptyset.images.image_set import ImageSet
from emptyset.monitor import SILENT, Monitor
from emptyset.teachers.teacher import Teacher

if TYPE_CHECKING:
    from emptyset.evaluate.accuracy import Accuracy
    from emptyset.evaluate.agreement import Agreement
    from emptyset.graph.student import Student
    from emptyset.images.folder import LazyImages


@dataclass(frozen=True)
class Measurement:
    """What was lost, on images that the quantizer did not see.

    Attributes:
        agreement: How often both name the same class; KL divergence to the teacher.
        teacher: Accuracy of the teacher, where there are labels.
        quantized: Accuracy of the quantized network, where there are labels.
    """

    agreement: "Agreement"
    teacher: "Accuracy | None" = None
    quantized: "Accuracy | None" = None

    def doubt(self) -> str | None:
        """Why the accuracies say nothing, where the float network itself only guesses."""
        if self.teacher is None or not self.teacher.no_better_than_chance():
            return None
        return (
            f"the float network itself names the right class of {self.teacher.top1:.1%} of these "
            f"images, no more than chance among {self.teacher.classes} classes. Are they numbered "
            "in its order, and are size, mean, std and order of colours those of its training?"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data; shares between 0 and 1."""
        return asdict(self)


Predict = Callable[[Tensor], Tensor]


def measure(
    quantized: "Student | Path | str | Predict",
    teacher: "Teacher | Predict",
    images: "ImageSet | LazyImages",
    *,
    seed: int = 0,
    batch_size: int = 256,
    monitor: Monitor = SILENT,
) -> Measurement:
    """Compare a student or an exported file with its teacher.

    Args:
        quantized: A student (simulated), the path of a file (run by ONNX Runtime), or any
            function from images to logits.
        teacher: The trained network, or any function from images to logits.
        images: Preferably none that the quantizer was fitted to. With labels, top-1 and top-5
            are measured too.
        seed: Seed of the bootstrap.
        batch_size: Images at a time.
        monitor: Hears of progress.
    """
    from emptyset.evaluate.accuracy import accuracy
    from emptyset.evaluate.agreement import agreement

    student, reference = predictor(quantized), predictor(teacher)
    with torch.no_grad():
        agreed = agreement(
            student, reference, images, seed=seed, batch_size=batch_size, monitor=monitor
        )
        if not has_labels(images):
            return Measurement(agreed)
        return Measurement(
            agreed,
            accuracy(reference, images, batch_size=batch_size, monitor=monitor),
            accuracy(student, images, batch_size=batch_size, monitor=monitor),
        )


def predictor(network: "Student | Teacher | Path | str | Predict") -> Predict:
    """A function from ``(N, C, H, W)`` CPU images to ``(N, K)`` CPU logits."""
    if isinstance(network, Path | str):
        from emptyset.evaluate.runtime import OnnxClassifier

        return OnnxClassifier(Path(network))
    if isinstance(network, Teacher):
        module = network.module
        if any(part.training for part in module.modules()):
            # BatchNorm would follow what it is shown; how the network stands is the caller's.
            module = copy.deepcopy(module).eval()
        return _on_its_device(module, network.example(1).device)
    teacher = getattr(network, "teacher", None)
    if isinstance(teacher, Teacher):
        return _on_its_device(network, teacher.example(1).device)
    return network


def _on_its_device(forward: Any, device: torch.device) -> Predict:
    def predict(images: Tensor) -> Tensor:
        # A copy: some networks write over their images, and these are the caller's.
        logits: Tensor = forward(images.to(device, copy=True))
        return logits.cpu()

    return predict


def has_labels(images: "ImageSet | LazyImages") -> bool:
    """Whether every image has a class index (soft targets are none)."""
    labels = images.targets if isinstance(images, ImageSet) else images.labels
    return labels is not None and labels.dim() == 1


def batch_size_for(shape: tuple[int, int, int], largest: int = 256) -> int:
    """Images to show at once, so that memory stays about the same for any image size.

    Args:
        shape: ``(C, H, W)`` of one image [pixels].
        largest: Upper limit, reached at 64 × 64 RGB and below.
    """
    channels, height, width = shape
    return max(1, min(largest, largest * 3 * 64 * 64 // (channels * height * width)))
