"""Everything that the step of one unit reads, always at the same places."""

from dataclasses import dataclass

import torch
from torch import Tensor

from emptyset.reconstruction.caches import Rows
from emptyset.reconstruction.config import Course
from emptyset.reconstruction.graph_function import GraphFunction
from emptyset.reconstruction.learnables import Learnables
from emptyset.reconstruction.random_bits import RandomBits
from emptyset.reconstruction.schedules import batch_order, step_table
from emptyset.reconstruction.step import Recipe


@dataclass(frozen=True)
class UnitRows:
    """What is kept of a unit for all images.

    Attributes:
        x: What it reads: the student's values, or the float network's.
        x_float: The float network's, for mixed inputs; else None.
        y: What it should give.
        weighting: What distances are multiplied by, or None.
    """

    x: Rows
    x_float: Rows | None
    y: Rows
    weighting: Rows | None

    def named(self) -> dict[str, Rows]:
        """By the names that the step knows."""
        rows = {"x": self.x, "x_float": self.x_float, "y": self.y, "weighting": self.weighting}
        return {name: one for name, one in rows.items() if one is not None}


class UnitTensors:
    """The tensors of one unit and what of them changes from step to step.

    Attributes:
        recipe: What the step's code depends on.
        named: The tensors, as ``unit_step`` lists them.
    """

    def __init__(
        self, function: GraphFunction, learnables: Learnables, rows: UnitRows, course: Course, *,
        channel_axis: int, seed: int, fused: bool,
    ) -> None:  # fmt: skip
        """Draw the order of images and make room for everything.

        Args:
            function: The unit's stretch.
            learnables: Where learning starts.
            rows: Inputs and targets.
            course: What is learnt, by which rule.
            channel_axis: Of the unit's output.
            seed: Of everything random.
            fused: Whether the step is written for a compiler.
        """
        self._rows = rows
        device = learnables.start.device
        batch = min(course.config.batch_size, len(rows.x))
        calls = _Trial(learnables).run(function, rows.x.read(0, batch))
        masks = tuple(shape for _, shape in calls) if course.activations else ()
        if course.inputs == "mixed":
            masks = ((batch, *rows.x.shape[1:]), *masks)
        masks = masks if course.kept < 1.0 else ()
        parts = tuple(learnables.parts)
        self.recipe = Recipe(function, parts, masks, channel_axis, course, fused)
        self._bits = RandomBits(masks, kept=course.kept, seed=seed + 1, device=device)
        self._table = step_table(course).to(device)
        self._order = batch_order(course, len(rows.x), batch, seed).to(device)
        start = learnables.start
        self.named = {
            "flat": start.clone(),
            "first": torch.zeros_like(start),
            "second": torch.zeros_like(start),
            "row": torch.zeros_like(self._table[0]),
            "index": torch.zeros_like(self._order[0]),
            "words": torch.zeros_like(self._bits.words[0]),
            "constant_rates": learnables.constant_rates,
            "falling_rates": learnables.falling_rates,
            **learnables.tensors,
        }
        if course.scale_gradient_factor:
            elements = [0] * len(parts)
            for number, shape in calls:
                elements[number] += torch.Size(shape).numel()
            self.named["gradient_factors"] = learnables.gradient_factors(elements)
        for number, value in enumerate(function.constant_values()):
            self.named[f"constant.{number}"] = value
        for name, one in rows.named().items():
            self.named[name] = one.stored
            if one.place == "disk":
                # This step's rows are read by the host, into the same place every time.
                self.named[name] = torch.zeros(batch, *one.stored.shape[1:], device=device)
                self.named[f"{name}.place"] = torch.arange(batch, device=device)

    def prepare(self, number: int) -> None:
        """Put what belongs to this step where its code looks."""
        self._bits.prepare(number)
        self.named["row"].copy_(self._table[number])
        self.named["index"].copy_(self._order[number])
        self.named["words"].copy_(self._bits.words[number % self._bits.steps])
        for name, rows in self._rows.named().items():
            if rows.place == "disk":
                self.named[name].copy_(rows.chosen(self._order[number]))


class _Trial:
    """Notes which activation quantizers a batch meets, in order, and the shapes that they read."""

    def __init__(self, learnables: Learnables) -> None:
        self._learnables = learnables
        self.calls: list[tuple[int, tuple[int, ...]]] = []

    def __call__(self, number: int, x: Tensor | None) -> Tensor:
        """The weight, or ``x`` as it is."""
        if x is None:
            return self._learnables.weight(number)
        self.calls.append((number, tuple(x.shape)))
        return x

    def rounded_bias(self, inputs: int, weight: int, bias: Tensor) -> Tensor:
        """The bias as it is."""
        return bias

    @torch.no_grad()
    def run(self, function: GraphFunction, x: Tensor) -> list[tuple[int, tuple[int, ...]]]:
        """The calls, by quantizer number."""
        function(x, self, function.constant_values())
        return self.calls
