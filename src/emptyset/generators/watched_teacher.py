"""The teacher as a generator's judge: logits and BatchNorm statistics of images, fast."""

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from emptyset.inversion.frozen_teacher import FrozenTeacher
from emptyset.inversion.recorded_inputs import recorded_inputs
from emptyset.inversion.standard_units import StandardUnits
from emptyset.losses.layer_statistics import LayerStatistics, layer_statistics
from emptyset.teachers.last_layer import feature_vectors
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
        self._hooks = ExitStack()
        modules = [layer.module for layer in self._frozen.layers]
        self._recorded = self._hooks.enter_context(recorded_inputs(modules))
        self._given = self._hooks.enter_context(recorded_inputs(self._frozen.last))
        with torch.no_grad():
            self._frozen.module(torch.zeros(1, *self.shape, device=self.device))
            self._calls = len(self._recorded)
            self._elements = sum(x.numel() for _, x in self._recorded)
        self._forget()

    def work_per_image(self) -> tuple[int, int]:
        """Elements of all BatchNorm inputs of one image, and their number."""
        return self._elements, self._calls

    def look(self, images_NCHW: Tensor, *, half: bool) -> Watched:
        """One forward.

        Args:
            images_NCHW: ``(N, C, H, W)`` [teacher's normalised units].
            half: Run in bfloat16.
        """
        self._forget()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            logits = self._frozen.module(images_NCHW)
        seen = []
        for position, x in self._recorded:
            layer = self._frozen.layers[position]
            seen.append(layer_statistics(x, layer.mean, layer.var))
        features = logits
        if self._given:
            features = feature_vectors(self._given[-1][1], self._frozen.last[0])
        self._forget()
        return Watched(logits.float(), features.float(), tuple(seen))

    def _forget(self) -> None:
        self._recorded.clear()
        self._given.clear()
