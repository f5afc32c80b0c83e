"""What can be said of images without training on them: all measures of one set together."""

from dataclasses import asdict, dataclass
from typing import Any

from emptyset.evaluate.batch_norm_distance import BatchNormDistance, batch_norm_distance
from emptyset.evaluate.clip_similarity import ClipEncoder, ClipSimilarity, clip_similarity
from emptyset.evaluate.diversity import Diversity, diversity
from emptyset.images.image_source import Images
from emptyset.monitor import SILENT, Monitor
from emptyset.teachers.teacher import Teacher


@dataclass(frozen=True)
class ImageQuality:
    """All measures of a set of images, made or real.

    Attributes:
        count: Number of images.
        distance: From the statistics that the teacher stored; None for one without BatchNorm2d.
        diversity: Similarity between images in the teacher's features, and class agreement.
        clip: The same in the embeddings of a CLIP model; None where none was given.
    """

    count: int
    distance: BatchNormDistance | None
    diversity: Diversity
    clip: ClipSimilarity | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON data."""
        return asdict(self)


def image_quality(
    images: Images,
    teacher: Teacher,
    *,
    batch_size: int = 256,
    variance: bool = False,
    clip: ClipEncoder | None = None,
    monitor: Monitor = SILENT,
) -> ImageQuality:
    """Measure images with the teacher and, where one is given, with CLIP.

    Two sets can be compared where they were measured with the same teacher and batch size, on at
    least one whole batch each.

    Args:
        images: In the teacher's normalised units, at least 2.
        teacher: The trained network.
        batch_size: Images of a batch; the distance depends on it.
        variance: The distance compares variances instead of standard deviations.
        clip: From ``ClipEncoder.load``.
        monitor: Hears of progress.

    Raises:
        ImagesError: If there are fewer than 2 images.
    """
    distance = None
    if teacher.stored_batch_norms():
        distance = batch_norm_distance(
            images, teacher, batch_size=batch_size, variance=variance, monitor=monitor
        )
    return ImageQuality(
        count=len(images),
        distance=distance,
        diversity=diversity(images, teacher, batch_size=batch_size, monitor=monitor),
        clip=None
        if clip is None
        else clip_similarity(images, teacher.input, clip, batch_size=batch_size, monitor=monitor),
    )


def compared_quality(
    images: Images,
    real: Images | None,
    teacher: Teacher,
    *,
    batch_size: int = 256,
    variance: bool = False,
    clip: ClipEncoder | None = None,
    monitor: Monitor = SILENT,
) -> tuple[ImageQuality, ImageQuality | None]:
    """Measure a set and, alike, real images: in batches that both can fill.

    Args:
        images: In the teacher's normalised units, at least 2.
        real: Real images, or None.
        teacher: The trained network.
        batch_size: Most images of a batch.
        variance: The distance compares variances instead of standard deviations.
        clip: From ``ClipEncoder.load``.
        monitor: Hears of progress.

    Raises:
        ImagesError: If there are fewer than 2 images.
    """
    size = min(batch_size, len(images), *([] if real is None else [len(real)]))

    def measured(some: Images) -> ImageQuality:
        return image_quality(
            some, teacher, batch_size=size, variance=variance, clip=clip, monitor=monitor
        )

    return measured(images), None if real is None else measured(real)
