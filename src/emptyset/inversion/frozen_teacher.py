"""A private copy of the teacher, set up for speed, and what it says about images."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from emptyset.inversion.compilation import Execution, compiled
from emptyset.inversion.joint_statistics import TEACHER, Moments, batch_moments, joined_with
from emptyset.inversion.method import Method, Opinion, Seen
from emptyset.inversion.recorded_inputs import Recorded, recorded_inputs
from emptyset.inversion.standard_units import StandardUnits, standard_units
from emptyset.inversion.swing import swung
from emptyset.inversion.written_over import read_copies
from emptyset.losses.layer_statistics import (
    LayerStatistics,
    input_statistics,
    layer_statistics,
)
from emptyset.teachers.last_layer import LOGITS, PENULTIMATE, feature_vectors, last_layer
from emptyset.teachers.teacher import Teacher

Loss = Callable[[list[Tensor], Tensor | None, Mapping[str, Tensor]], tuple[Tensor, Moments]]
"""Variables, targets and drawn numbers to the loss and, with joint statistics, the moments."""


Layers = tuple[LayerStatistics, ...]


@dataclass(frozen=True)
class Layer:
    """One BatchNorm layer of the copy."""

    module: nn.Module
    mean: Tensor
    var: Tensor


class FrozenTeacher:
    """A copy without weight gradients, channels last; the teacher itself is never touched.

    Attributes:
        units: Standardised pixel units, and the teacher's own.
        device: Where the copy is.
        shape: ``(C, H, W)`` of an image.
        module: The copy.
        layers: Its BatchNorm layers.
        last: The layer whose input the features are (``teachers/last_layer.py``); empty: none.
        feature_kind: ``penultimate``, or ``logits`` where there is no such layer.
    """

    def __init__(self, teacher: Teacher, device: torch.device | None = None) -> None:
        self.units: StandardUnits = standard_units(teacher.input)
        self.device = device or teacher.example(1).device
        self.shape = teacher.input.shape
        module = copy.deepcopy(teacher.module).requires_grad_(False).eval().to(self.device)
        self.module: nn.Module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        by_name = dict(self.module.named_modules())
        self.layers = [
            Layer(by_name[n.name], *(v.detach().clone().to(self.device) for v in (n.mean, n.var)))
            for n in teacher.stored_batch_norms()
        ]
        name = last_layer(self.module, torch.zeros(1, *self.shape, device=self.device))
        self.last = [] if name is None else [by_name[name]]
        self.feature_kind = LOGITS if name is None else PENULTIMATE
        read_copies(self.module, self.watched(), torch.zeros(1, *self.shape, device=self.device))
        # What the hooks of a loss catch, for as long as it is there.
        self._caught: list[Recorded] = []

    def work_per_image(self) -> tuple[int, int]:
        """Elements of all BatchNorm inputs of one image, and the number of these inputs."""
        with recorded_inputs(layer.module for layer in self.layers) as recorded, torch.no_grad():
            self.module(torch.zeros(1, *self.shape, device=self.device))
            return sum(x.numel() for _, x in recorded), len(recorded)

    def channels(self) -> int:
        """Channels of all BatchNorm inputs together, each counted as often as it is called."""
        return sum(one.shift.shape[1] for one in self.look(torch.zeros(1, *self.shape)).layers)

    @torch.no_grad()
    def look(self, images_NCHW: Tensor) -> Seen:
        """What the copy makes of images [standardised pixel units], float32, no gradients."""
        images_NCHW = images_NCHW.to(self.device)
        with recorded_inputs(self.watched()) as recorded:
            logits = self.module(self.units.to_teacher(images_NCHW))
            statistics, features = self.sorted_inputs(recorded)
        # The hooks of a loss caught all feature maps too; nobody will ask for these.
        for caught in self._caught:
            caught.clear()
        return Seen(images_NCHW, logits.float(), features, statistics, None, {})

    @contextmanager
    def loss_of(
        self, method: Method, execution: Execution, others: "Sequence[FrozenTeacher]" = ()
    ) -> Iterator[Loss]:
        """The method's loss as a function of what is optimised, compiled where decided.

        Hooks live as long as the ``with`` block.

        Args:
            method: Renders the images and judges what is seen.
            execution: How to run the copies.
            others: Copies of ``method.others``.
        """
        with ExitStack() as hooks:
            recorded = [
                hooks.enter_context(recorded_inputs(one.watched())) for one in (self, *others)
            ]
            for one, caught in zip((self, *others), recorded, strict=True):
                one._caught.append(caught)
                hooks.callback(one._caught.clear)
            offsets = hooks.enter_context(swung(self.module)) if method.swing else None
            half = execution.dtype == torch.bfloat16
            function: Loss = _Loss(method, (self, *others), recorded, offsets, half).of
            if execution.compiled:
                function = compiled(function)

            def loss(
                variables: list[Tensor], targets: Tensor | None, drawn: Mapping[str, Tensor]
            ) -> tuple[Tensor, Moments]:
                # Not left to the compiled function: it would be compiled anew for lists that
                # another forward, such as that of `look`, has filled.
                for caught in recorded:
                    caught.clear()
                return function(variables, targets, drawn)

            yield loss

    def watched(self) -> list[nn.Module]:
        """The layers whose inputs are looked at: BatchNorm layers, and the last one."""
        return [layer.module for layer in self.layers] + self.last

    def sorted_inputs(self, recorded: Recorded) -> tuple[Layers, Tensor | None]:
        """What ``watched`` layers were given, as statistics and features.

        Returns:
            Of the BatchNorm inputs, in the order of the calls; ``(N, F)``, None without a last
            layer.
        """
        statistics, features = [], None
        for position, x in recorded:
            if position < len(self.layers):
                layer = self.layers[position]
                statistics.append(layer_statistics(x, layer.mean, layer.var))
            else:
                features = feature_vectors(x.float(), self.last[0])
        return tuple(statistics), features


@dataclass(frozen=True)
class _Loss:
    """What one step computes, hooks being in place.

    Attributes:
        method: Renders the images and judges what is seen.
        teachers: The teacher's copy, then those of ``method.others``.
        recorded: What the hooks of each caught.
        offsets: Where the swing's offsets go, or None.
        half: Run the teachers, and the network that a canvas may be, in bfloat16.
    """

    method: Method
    teachers: tuple[FrozenTeacher, ...]
    recorded: list[Recorded]
    offsets: list[Tensor] | None
    half: bool

    def of(
        self, variables: list[Tensor], targets: Tensor | None, drawn: Mapping[str, Tensor]
    ) -> tuple[Tensor, Moments]:
        """The loss, and the moments that the batch leaves for the others."""
        with torch.autocast(self.teachers[0].device.type, torch.bfloat16, enabled=self.half):
            images = self.method.canvas.render(variables)
        if self.method.augment is not None:
            images = self.method.augment(images, drawn)
        if self.offsets is not None:
            self.offsets[:] = [drawn["swing"]]
        logits, layers, features = self._shown(0, images)
        if self.offsets is not None:
            self.offsets.clear()
        chosen = [n for n in range(len(self.teachers) - 1) if f"other.{n}" in drawn]
        opinions = tuple(Opinion(*self._shown(n + 1, images)[:2]) for n in chosen)
        seen = Seen(images, logits, features, layers, targets, drawn, opinions)
        moments: Moments = {}
        if self.method.joint_steps is not None:
            seen, moments = _within_the_set(seen, chosen)
        return self.method.objective(seen), moments

    def _shown(self, number: int, images: Tensor) -> tuple[Tensor, Layers, Tensor | None]:
        """Logits, statistics and features of one of the teachers."""
        teacher, recorded = self.teachers[number], self.recorded[number]
        if number:
            images = teacher.units.from_other(images, self.teachers[0].units)
        with torch.autocast(teacher.device.type, torch.bfloat16, enabled=self.half):
            logits = teacher.module(teacher.units.to_teacher(images))
        layers, features = teacher.sorted_inputs(recorded)
        recorded.clear()  # nothing keeps the features alive longer than the gradient needs them
        return logits.float(), layers, features


def _within_the_set(seen: Seen, chosen: Sequence[int]) -> tuple[Seen, Moments]:
    """The same with statistics of all batches together, and what this batch leaves for them.

    Args:
        seen: Statistics of the batch.
        chosen: Numbers of the further teachers that took part.
    """
    # The images themselves count as one more layer, after the others.
    own = (*seen.layers, input_statistics(seen.images))
    moments = {TEACHER: batch_moments(own)}
    *layers, pixels = joined_with(own, seen.drawn, TEACHER)
    others = []
    for number, opinion in zip(chosen, seen.others, strict=True):
        name = f"other.{number}"
        moments[name] = batch_moments(opinion.layers)
        others.append(Opinion(opinion.logits, joined_with(opinion.layers, seen.drawn, name)))
    joint = Seen(
        seen.images, seen.logits, seen.features, tuple(layers), seen.targets, seen.drawn,
        tuple(others), pixels.elsewhere,
    )  # fmt: skip
    return joint, moments
