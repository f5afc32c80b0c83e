"""A private copy of the teacher, set up for speed, and what it says about images."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from emptyset.inversion.compilation import Execution, compiled
from emptyset.inversion.method import Method, Opinion, Seen
from emptyset.inversion.recorded_inputs import Recorded, recorded_inputs
from emptyset.inversion.standard_units import StandardUnits, standard_units
from emptyset.inversion.swing import swung
from emptyset.losses.layer_statistics import LayerStatistics, layer_statistics
from emptyset.teachers.teacher import Teacher

Loss = Callable[[list[Tensor], Tensor | None, Mapping[str, Tensor]], Tensor]
"""Variables, targets and drawn numbers to the scalar loss."""


@dataclass(frozen=True)
class Layer:
    """One BatchNorm layer of the copy."""

    module: nn.Module
    mean: Tensor
    var: Tensor


class FrozenTeacher:
    """A copy without weight gradients, channels last; the teacher itself is never touched."""

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
        linears = [m for m in self.module.modules() if isinstance(m, nn.Linear)]
        self._classifier = linears[-1:]

    def work_per_image(self) -> tuple[int, int]:
        """Elements of all BatchNorm inputs of one image, and the number of these inputs."""
        with recorded_inputs(layer.module for layer in self.layers) as recorded, torch.no_grad():
            self.module(torch.zeros(1, *self.shape, device=self.device))
            return sum(x.numel() for _, x in recorded), len(recorded)

    @torch.no_grad()
    def look(self, images_NCHW: Tensor) -> Seen:
        """What the copy makes of images [standardised pixel units], float32, no gradients."""
        images_NCHW = images_NCHW.to(self.device)
        with recorded_inputs(self._watched()) as recorded:
            logits = self.module(self.units.to_teacher(images_NCHW))
            statistics, features = self._sorted(recorded)
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
        half = execution.dtype == torch.bfloat16
        with ExitStack() as hooks:
            recorded = hooks.enter_context(recorded_inputs(self._watched()))
            theirs = [hooks.enter_context(recorded_inputs(o._watched())) for o in others]
            offsets = hooks.enter_context(swung(self.module)) if method.swing else None

            def opinion(number: int, images: Tensor) -> Opinion:
                other = others[number]
                theirs[number].clear()
                shown = other.units.to_teacher(other.units.from_other(images, self.units))
                with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                    logits = other.module(shown)
                return Opinion(logits.float(), other._sorted(theirs[number])[0])

            def loss(
                variables: list[Tensor], targets: Tensor | None, drawn: Mapping[str, Tensor]
            ) -> Tensor:
                recorded.clear()
                images = method.canvas.render(variables)
                if method.augment is not None:
                    images = method.augment(images, drawn)
                if offsets is not None:
                    offsets[:] = [drawn["swing"]]
                shown = self.units.to_teacher(images)
                with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                    logits = self.module(shown)
                if offsets is not None:
                    offsets.clear()
                statistics, features = self._sorted(recorded)
                chosen = [n for n in range(len(others)) if f"other.{n}" in drawn]
                opinions = tuple(opinion(n, images) for n in chosen)
                seen = Seen(images, logits.float(), features, statistics, targets, drawn, opinions)
                return method.objective(seen)

            yield compiled(loss) if execution.compiled else loss

    def _watched(self) -> list[nn.Module]:
        return [layer.module for layer in self.layers] + list(self._classifier)

    def _sorted(self, recorded: Recorded) -> tuple[tuple[LayerStatistics, ...], Tensor | None]:
        """Statistics of the BatchNorm inputs in the order of the calls; the classifier's input."""
        statistics, features = [], None
        for position, x in recorded:
            if position < len(self.layers):
                layer = self.layers[position]
                statistics.append(layer_statistics(x, layer.mean, layer.var))
            else:
                features = x.float()
        return tuple(statistics), features
