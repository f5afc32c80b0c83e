"""The teacher as a generator's judge: logits and BatchNorm statistics of images, fast."""

from contextlib import ExitStack

import torch
from torch import Tensor

from emptyset.inversion.frozen_teacher import FrozenTeacher
from emptyset.inversion.recorded_inputs import recorded_inputs
from emptyset.inversion.standard_units import StandardUnits
from emptyset.losses.layer_statistics import LayerStatistics, layer_statistics
from emptyset.teachers.teacher import Teacher

# A layer's moments as plain tensors: what compiled code can give back.
Moments = list[tuple[Tensor, Tensor]]


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
        self._hooks = ExitStack()
        modules = [layer.module for layer in self._frozen.layers]
        self._recorded = self._hooks.enter_context(recorded_inputs(modules))
        with torch.no_grad():
            self._frozen.module(torch.zeros(1, *self.shape, device=self.device))
            # Layer and number of pixels per call: the same for every batch.
            self._calls = [(position, x[0, 0].numel()) for position, x in self._recorded]
            self._elements = sum(x.numel() for _, x in self._recorded)
        self._recorded.clear()

    def work_per_image(self) -> tuple[int, int]:
        """Elements of all BatchNorm inputs of one image, and their number."""
        return self._elements, len(self._calls)

    def look(self, images_NCHW: Tensor, *, half: bool) -> tuple[Tensor, Moments]:
        """Logits ``(N, K)`` and, per call of a BatchNorm layer, shift and square; float32.

        Args:
            images_NCHW: ``(N, C, H, W)`` [teacher's normalised units].
            half: Run in bfloat16.
        """
        self._recorded.clear()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            logits = self._frozen.module(images_NCHW)
        moments = []
        for position, x in self._recorded:
            layer = self._frozen.layers[position]
            found = layer_statistics(x, layer.mean, layer.var)
            moments.append((found.shift, found.square))
        self._recorded.clear()
        return logits.float(), moments

    def statistics(self, moments: Moments) -> tuple[LayerStatistics, ...]:
        """What ``look`` gave, beside what the layers stored."""
        return tuple(
            LayerStatistics(shift, square, pixels, self._frozen.layers[position].var)
            for (shift, square), (position, pixels) in zip(moments, self._calls, strict=True)
        )
