"""What a teacher sees in images just before it decides: the input of its last layer."""

from dataclasses import dataclass

import torch
from torch import Tensor

from emptyset.errors import UnsupportedModelError
from emptyset.inversion.frozen_teacher import FrozenTeacher
from emptyset.inversion.recorded_inputs import recorded_inputs
from emptyset.teachers.last_layer import feature_vectors
from emptyset.teachers.teacher import Teacher


@dataclass(frozen=True)
class Features:
    """What was seen of some images, on the CPU.

    Attributes:
        features: ``(N, F)`` float32 [feature units].
        logits: ``(N, K)`` float32.
    """

    features: Tensor
    logits: Tensor


class TeacherFeatures:
    """Reads images with a private copy of the teacher.

    The last layer is that of ``teachers/last_layer.py``. Features that are maps, or one vector per
    token, are averaged over their places.

    Attributes:
        kind: ``penultimate``; ``logits`` for a network without such a layer, whose logits then
            stand for the features.
        classes: K.
    """

    def __init__(self, teacher: Teacher, *, batch_size: int = 256) -> None:
        """Copy the teacher.

        Args:
            teacher: A classifier; it stays as it is.
            batch_size: Images in one forward.

        Raises:
            UnsupportedModelError: If it gives no logits ``(N, K)``.
        """
        self._frozen = FrozenTeacher(teacher)
        self._batch_size = batch_size
        self.kind = self._frozen.feature_kind
        with torch.no_grad():
            logits = self._frozen.module(teacher.example(1))
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UnsupportedModelError(
                f"reading features: {teacher.name} gives {shape} for one image, where a classifier "
                "gives one logit per class, (1, K). Name a classifier."
            )
        self.classes = logits.shape[1]

    @torch.no_grad()
    def of(self, images_NCHW: Tensor) -> Features:
        """Features and logits of images.

        Args:
            images_NCHW: ``(N, C, H, W)`` [teacher's normalised units], anywhere.
        """
        starts = range(0, len(images_NCHW), self._batch_size)
        parts = [self._seen(images_NCHW[start : start + self._batch_size]) for start in starts]
        features, logits = zip(*parts, strict=True)
        return Features(torch.cat(features), torch.cat(logits))

    def _seen(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with recorded_inputs(self._frozen.last) as recorded:
            logits = self._frozen.module(images.to(self._frozen.device)).float().cpu()
            if not recorded:
                return logits, logits
            _, given = recorded[-1]
            return feature_vectors(given.float(), self._frozen.last[0]).cpu(), logits
