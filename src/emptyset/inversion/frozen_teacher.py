"""A private copy of the teacher, set up for speed, and what it says about images."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from emptyset.inversion.compilation import Execution
from emptyset.inversion.method import Method, Seen
from emptyset.inversion.recorded_inputs import recorded_inputs
from emptyset.inversion.standard_units import StandardUnits, standard_units
from emptyset.losses.layer_statistics import layer_statistics
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

    def __init__(self, teacher: Teacher) -> None:
        self.units: StandardUnits = standard_units(teacher.input)
        self.device = teacher.example(1).device
        self.shape = teacher.input.shape
        module = copy.deepcopy(teacher.module).requires_grad_(False).eval()
        self.module: nn.Module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        by_name = dict(self.module.named_modules())
        self.layers = [
            Layer(by_name[n.name], n.mean.detach().clone(), n.var.detach().clone())
            for n in teacher.stored_batch_norms()
        ]
        linears = [m for m in self.module.modules() if isinstance(m, nn.Linear)]
        self._classifier = linears[-1:]

    def work_per_image(self) -> tuple[int, int]:
        """Elements of all BatchNorm inputs of one image, and the number of these inputs."""
        with recorded_inputs(layer.module for layer in self.layers) as recorded, torch.no_grad():
            self.module(torch.zeros(1, *self.shape, device=self.device))
            return sum(x.numel() for _, x in recorded), len(recorded)

    @contextmanager
    def loss_of(self, method: Method, execution: Execution) -> Iterator[Loss]:
        """The method's loss as a function of what is optimised, compiled where decided.

        Hooks live as long as the ``with`` block.
        """
        watched = [layer.module for layer in self.layers] + list(self._classifier)
        half = execution.dtype == torch.bfloat16
        with recorded_inputs(watched) as recorded:

            def loss(
                variables: list[Tensor], targets: Tensor | None, drawn: Mapping[str, Tensor]
            ) -> Tensor:
                recorded.clear()
                images = method.canvas.render(variables)
                if method.augment is not None:
                    images = method.augment(images, drawn)
                shown = self.units.to_teacher(images)
                with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                    logits = self.module(shown)
                statistics, features = [], None
                for position, x in recorded:
                    if position < len(self.layers):
                        layer = self.layers[position]
                        statistics.append(layer_statistics(x, layer.mean, layer.var))
                    else:
                        features = x.float()
                seen = Seen(images, logits.float(), features, tuple(statistics), targets, drawn)
                return method.objective(seen)

            yield torch.compile(loss, dynamic=False) if execution.compiled else loss
