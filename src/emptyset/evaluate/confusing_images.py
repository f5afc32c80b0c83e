"""Real images that the teacher is unsure of, and as many that it is sure of: for analysis only.

Qimera's table 1 asks whether images near the boundaries between classes are what synthetic ones
lack. Both sets are real images: nothing made with them is data-free.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from emptyset.errors import ImagesError
from emptyset.evaluate.accuracy import Predict, require_logits
from emptyset.evaluate.diversity import classes_of
from emptyset.images.image_source import Images
from emptyset.images.targets import require_targets
from emptyset.monitor import SILENT, Monitor

PER_CLASS = 15
BELOW = 0.25


@dataclass(frozen=True)
class ConfusingClass:
    """What was found in one class.

    Attributes:
        label: Its index.
        images: How many there are of it.
        chosen: How many of these are confusing.
        threshold: Confidence of the surest of the chosen, 0..1; None where none was chosen.
    """

    label: int
    images: int
    chosen: int
    threshold: float | None


@dataclass(frozen=True)
class ConfusingImages:
    """Which images confuse the teacher.

    Attributes:
        confusing: Indices of the chosen images, ascending.
        unconfusing: As many of the others, drawn at random, ascending: the control.
        confidence: Largest probability that the teacher gives to each image, 0..1.
        classes: One entry per class, by index.
        per_class: Most that were wanted of each class, or None.
        below: Confidence below which an image counts as confusing, or None: the least sure ones.
    """

    confusing: tuple[int, ...]
    unconfusing: tuple[int, ...]
    confidence: tuple[float, ...]
    classes: tuple[ConfusingClass, ...]
    per_class: int | None
    below: float | None

    def short(self) -> list[int]:
        """Classes of which fewer were found than wanted."""
        wanted = self.per_class or 0
        return [found.label for found in self.classes if found.chosen < wanted]

    def to_json(self) -> dict[str, Any]:
        """JSON data; says that it is no data-free result."""
        note = "chosen among real images: analysis only, not data-free"
        return {"note": note, **asdict(self), "short": self.short()}


@torch.no_grad()
def confusing_images(
    predict: Predict,
    images: Images,
    *,
    seed: int,
    per_class: int | None = PER_CLASS,
    below: float | None = BELOW,
    control: bool = True,
    batch_size: int = 256,
    monitor: Monitor = SILENT,
) -> ConfusingImages:
    """The images of every class that the teacher is least sure of.

        confidence = max_k softmax(z)_k

    Of a class those below ``below`` are confusing, the least sure ones first, at most
    ``per_class``. The control is drawn from images that are not: neither chosen nor below
    ``below``.

    Args:
        predict: The teacher, images to logits ``(N, K)``.
        images: Real images with labels, in the teacher's normalised units.
        seed: Of the control.
        per_class: Most of one class; None: all that are below.
        below: Confidence below which an image counts; None: the least sure ``per_class``,
            whatever they are.
        control: Whether to draw the others too; False: there may be too few of them.
        batch_size: Images at a time.
        monitor: Hears of progress.

    Returns:
        Both sets, and what every class gave; classes that lack images are named by ``short``.

    Raises:
        ImagesError: If there are no labels, one is no class of the network, or fewer images are
            sure than the control needs.
        ValueError: If neither limit is given, or one cannot be.

    Source:
        Qimera, Choi et al. 2021, arXiv:2111.02625, table 1: 15 images of each class of CIFAR-100
        with a confidence below 0.25.
    """
    if per_class is None and below is None:
        raise ValueError("Give per_class, below or both: without them every image is confusing.")
    if (per_class is not None and per_class < 1) or (below is not None and not 0 < below <= 1):
        raise ValueError(
            f"per_class must be at least 1 and below in 0..1. Got {per_class} and {below}."
        )
    confidence, labels, classes = _looked_at(predict, images, batch_size, monitor)
    chosen, found = [], []
    for label in range(classes):
        own = (labels == label).nonzero().flatten()
        picked = _least_sure(own, confidence, per_class, below)
        threshold = confidence[picked[-1]].item() if len(picked) else None
        found.append(ConfusingClass(label, len(own), len(picked), threshold))
        chosen += picked.tolist()
    others = _control(confidence, chosen, below, seed) if control else ()
    return ConfusingImages(
        tuple(sorted(chosen)), others, tuple(confidence.tolist()), tuple(found), per_class, below
    )


def _looked_at(
    predict: Predict, images: Images, batch_size: int, monitor: Monitor
) -> tuple[Tensor, Tensor, int]:
    """Confidence and label of every image, and the number of classes."""
    confidence, labels, classes, done = [], [], 0, 0
    for batch in images.batches(batch_size):
        if batch.targets is None:
            raise ImagesError(
                "Confusing images are chosen class by class, and these have no labels. Give a "
                "folder with one subfolder per class, or an npz with `labels`."
            )
        logits = predict(batch.images)
        require_logits(logits, len(batch.images))
        confidence.append(logits.double().softmax(dim=1).amax(dim=1).cpu())
        labels.append(classes_of(batch.targets))
        classes, done = logits.shape[1], done + len(batch.images)
        monitor.advance("confidence", done, len(images))
    if not confidence:
        raise ImagesError("Confusing images need at least one image. Got none.")
    found = torch.cat(labels)
    require_targets(found, classes, who="confusing images", advice="They decide the classes.")
    return torch.cat(confidence), found, classes


def _least_sure(
    own: Tensor, confidence: Tensor, per_class: int | None, below: float | None
) -> Tensor:
    """Indices among ``own``, the least sure first."""
    ordered = own[confidence[own].argsort(stable=True)]
    if below is not None:
        ordered = ordered[confidence[ordered] < below]
    return ordered if per_class is None else ordered[:per_class]


def _control(
    confidence: Tensor, chosen: Sequence[int], below: float | None, seed: int
) -> tuple[int, ...]:
    """As many sure images as were chosen, each as likely as any other."""
    sure = torch.ones(len(confidence), dtype=torch.bool)
    sure[list(chosen)] = False
    if below is not None:
        sure &= confidence >= below
    left = sure.nonzero().flatten()
    if len(left) < len(chosen):
        raise ImagesError(
            f"{len(chosen)} images are confusing, and only {len(left)} are left for the control. "
            "Lower per_class or below, or give more images."
        )
    order = torch.randperm(len(left), generator=torch.Generator().manual_seed(seed))
    return tuple(sorted(left[order[: len(chosen)]].tolist()))
