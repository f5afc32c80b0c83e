"""How different images are from one another, as the teacher sees them."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from emptyset.errors import ImagesError
from emptyset.evaluate.teacher_features import TeacherFeatures
from emptyset.images.image_source import Images
from emptyset.images.targets import require_targets
from emptyset.losses.similarity import pairwise_similarity, similarity_to_others
from emptyset.monitor import SILENT, Monitor
from emptyset.teachers.teacher import Teacher


@dataclass(frozen=True)
class Diversity:
    """How teacher features differ: cosines, −1..1, lower is more diverse, and their variance.

    Attributes:
        similarity: Mean over all pairs of images.
        similarity_within_class: Mean over the pairs of each class, then over the classes with two
            images or more; None where there is no such class.
        similarity_to_others: Mean cosine of an image with the mean of all others (SimLoss1).
        variance_within_class: Summed over the features, of each class, then mean over the classes
            with two images or more [features' units, squared]; None where there is no such class.
            Higher is more diverse. It sees what a cosine leaves out, how far features reach.
        class_agreement: Share of the images that the teacher gives their own class, 0..1; None
            without targets.
        classes: Number of classes that occur.
        count: Number of images.
        labelled: Whether classes are the images' targets; else what the teacher says.
        features: What is compared: ``penultimate`` features, or ``logits`` for want of a last
            layer (``teachers/last_layer.py``). Only values of one kind can be compared.
    """

    similarity: float
    similarity_within_class: float | None
    similarity_to_others: float
    variance_within_class: float | None
    class_agreement: float | None
    classes: int
    count: int
    labelled: bool
    features: str

    def to_json(self) -> dict[str, Any]:
        """JSON data."""
        return asdict(self)


@torch.no_grad()
def diversity(
    images: Images, teacher: Teacher, *, batch_size: int = 256, monitor: Monitor = SILENT
) -> Diversity:
    """Compare images in the input of the teacher's last layer (its logits without one).

    Classes are the targets where there are any (the likeliest of soft ones), else the teacher's
    predictions. Only the features are kept of each image.

    Args:
        images: In the teacher's normalised units.
        teacher: Any classifier.
        batch_size: Images at a time.
        monitor: Hears of progress.

    Raises:
        ImagesError: If there are fewer than 2 images, or a target is no class of the teacher.
        UnsupportedModelError: If the teacher is no classifier.
    """
    if len(images) < 2:
        raise ImagesError(f"Similarity between images needs at least 2. Got {len(images)}.")
    reader = TeacherFeatures(teacher, batch_size=batch_size)
    features, predictions, targets = [], [], []
    done = 0
    for batch in images.batches(batch_size):
        seen = reader.of(batch.images)
        features.append(seen.features.double())
        predictions.append(seen.logits.argmax(dim=1))
        if batch.targets is not None:
            require_targets(
                batch.targets,
                reader.classes,
                who="class agreement",
                advice="Or give the images without labels.",
            )
            targets.append(classes_of(batch.targets))
        done += len(batch.images)
        monitor.advance("diversity", done, len(images))
    features_NF, said = torch.cat(features), torch.cat(predictions)
    classes = torch.cat(targets) if targets else said
    agreed = (classes == said).double().mean().item() if targets else None
    return Diversity(
        similarity=pairwise_similarity(features_NF).item(),
        similarity_within_class=similarity_within(features_NF, classes),
        similarity_to_others=similarity_to_others(features_NF).item(),
        variance_within_class=variance_within(features_NF, classes),
        class_agreement=agreed,
        classes=len(set(classes.tolist())),
        count=len(classes),
        labelled=bool(targets),
        features=reader.kind,
    )


def classes_of(targets: Tensor) -> Tensor:
    """``(N,)`` class indices on the CPU: the targets, or the likeliest class of soft ones."""
    return (targets if targets.dim() == 1 else targets.argmax(dim=1)).cpu()


def similarity_within(features_NF: Tensor, classes_N: Tensor) -> float | None:
    """Mean cosine over the pairs of each class, then over the classes.

    Args:
        features_NF: ``(N, F)``.
        classes_N: Class index of each.

    Returns:
        −1..1; None where no class has two images.
    """
    return _mean_over_classes(features_NF, classes_N, pairwise_similarity)


def variance_within(features_NF: Tensor, classes_N: Tensor) -> float | None:
    """Unbiased variance within each class, summed over the features, then mean over the classes.

    Args:
        features_NF: ``(N, F)``.
        classes_N: Class index of each.

    Returns:
        0 or more; None where no class has two images.
    """
    return _mean_over_classes(features_NF, classes_N, lambda members: members.var(dim=0).sum())


def _mean_over_classes(
    features_NF: Tensor, classes_N: Tensor, measure: Callable[[Tensor], Tensor]
) -> float | None:
    """Of every class with two images or more."""
    found = []
    for label in sorted(set(classes_N.tolist())):
        members = features_NF[classes_N == label]
        if len(members) > 1:
            found.append(measure(members).item())
    return sum(found) / len(found) if found else None
