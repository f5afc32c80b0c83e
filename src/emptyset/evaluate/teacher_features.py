"""What a teacher sees in images just before it decides: the input of its last layer."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from emptyset.inversion.frozen_teacher import FrozenTeacher
from emptyset.inversion.labels import class_count
from emptyset.inversion.recorded_inputs import recorded_inputs
from emptyset.teachers.teacher import Teacher

PENULTIMATE, LOGITS = "penultimate", "logits"


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

    The last layer is the linear layer or 1x1 convolution with one output per class that is called
    last. Features that are maps, or one vector per token, are averaged over their places.

    Attributes:
        kind: ``penultimate``; ``logits`` for a network without such a layer, whose logits then
            stand for the features.
    """

    def __init__(self, teacher: Teacher, *, batch_size: int = 256) -> None:
        """Copy the teacher.

        Args:
            teacher: A classifier of at least 2 classes; it stays as it is.
            batch_size: Images in one forward.

        Raises:
            UnsupportedModelError: If it is no classifier.
        """
        classes = class_count(teacher, "reading features")
        self._frozen = FrozenTeacher(teacher)
        self._batch_size = batch_size
        self._layers = [m for m in self._frozen.module.modules() if _decides(m, classes)]
        self.kind = PENULTIMATE if self._layers else LOGITS

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
        with recorded_inputs(self._layers) as recorded:
            logits = self._frozen.module(images.to(self._frozen.device)).float()
            if not recorded:
                return logits.cpu(), logits.cpu()
            position, given = recorded[-1]
            features = _vectors(given.float(), self._layers[position])
        return features.cpu(), logits.cpu()


def _decides(module: nn.Module, classes: int) -> bool:
    """Whether a layer has one output per class."""
    if isinstance(module, nn.Linear):
        return module.out_features == classes
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.groups == 1
        and module.out_channels == classes
    )


def _vectors(x: Tensor, layer: nn.Module) -> Tensor:
    """One vector per image; channels come second before a convolution, last before a linear."""
    if isinstance(layer, nn.Conv2d):
        return x.flatten(2).mean(dim=2)
    return x if x.dim() == 2 else x.flatten(1, -2).mean(dim=1)
