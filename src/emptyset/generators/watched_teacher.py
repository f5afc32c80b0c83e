"""The teacher as a generator's judge: logits and BatchNorm statistics of images, fast."""

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from emptyset.inversion.frozen_teacher import FrozenTeacher
from emptyset.inversion.recorded_inputs import recorded_inputs
from emptyset.inversion.standard_units import StandardUnits
from emptyset.losses.layer_statistics import LayerStatistics
from emptyset.teachers.teacher import Teacher


@dataclass(frozen=True)
class Watched:
    """What the teacher says of images; everything float32.

    Attributes:
        logits: ``(N, K)``.
        penultimate: ``(N, F)``, what its last layer is given; its logits without one.
        layers: Statistics of every BatchNorm input.
    """

    logits: Tensor
    penultimate: Tensor
    layers: tuple[LayerStatistics, ...]


class WatchedTeacher:
    """A private copy of the teacher without weight gradients; its hooks live as long as it does.

    Attributes:
        units: From a generator's units to the teacher's.
        device: Where it is.
        shape: ``(C, H, W)`` of an image [pixels].
    """

    def __init__(self, teacher: Teacher) -> None:
        self._frozen = FrozenTeacher(teacher)
        self.units: StandardUnits = self._frozen.units
        self.device, self.shape = self._frozen.device, self._frozen.shape
        self._work = self._frozen.work_per_image()
        self._hooks = ExitStack()
        self._recorded = self._hooks.enter_context(recorded_inputs(self._frozen.watched()))

    def work_per_image(self) -> tuple[int, int]:
        """Elements of all BatchNorm inputs of one image, and their number."""
        return self._work

    def look(self, images_NCHW: Tensor, *, half: bool) -> Watched:
        """One forward.

        Args:
            images_NCHW: ``(N, C, H, W)`` [teacher's normalised units].
            half: Run in bfloat16.
        """
        self._recorded.clear()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            logits = self._frozen.module(images_NCHW).float()
        layers, features = self._frozen.sorted_inputs(self._recorded)
        self._recorded.clear()
        return Watched(logits, logits if features is None else features, layers)
