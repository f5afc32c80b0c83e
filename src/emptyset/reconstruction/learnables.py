"""What a unit learns: one flat vector of V, weight scales and activation scales, and what it means.

One vector means one Adam update for all of them, whatever their rates, and three tensors to keep.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from emptyset.graph.operators import attribute
from emptyset.graph.student import Student
from emptyset.quantizers.adaptive_rounding import rounded_up, split
from emptyset.quantizers.affine import SMALLEST_SCALE, AffineFakeQuantizer
from emptyset.reconstruction.config import Course
from emptyset.reconstruction.units import Unit, weight_paths

Role = Literal["rounding", "value", "activation"]


@dataclass(frozen=True)
class Part:
    """One quantizer of a unit: what it does, and where in the flat vector its parameters are.

    Attributes:
        role: ``rounding``: a weight whose rounding is learnt; ``value``: a weight that stays;
            ``activation``.
        logits: Start and shape of V, or None.
        scale: Start and shape of the scale's parameter, or None: the scale stays.
    """

    role: Role
    logits: tuple[int, tuple[int, ...]] | None = None
    scale: tuple[int, tuple[int, ...]] | None = None


def slice_of(flat: Tensor, place: tuple[int, tuple[int, ...]]) -> Tensor:
    """The parameters at a place, in their shape."""
    start, shape = place
    return flat[start : start + torch.Size(shape).numel()].view(shape)


def logits_of(flat: Tensor, place: tuple[int, tuple[int, ...]]) -> Tensor:
    """V at a place, shaped as the weight; it lies channels last, as the products read it."""
    start, shape = place
    if len(shape) != 4:
        return slice_of(flat, place)
    outputs, inputs, height, width = shape
    return slice_of(flat, (start, (outputs, height, width, inputs))).permute(0, 3, 1, 2)


def learnt_scale(start: Tensor, parameter: Tensor, *, relative: bool) -> Tensor:
    """``start · exp(p)`` or ``start + p``, above 0; shaped as ``start`` [units of x per step]."""
    scale = start * parameter.exp() if relative else start + parameter
    return scale.clamp(min=SMALLEST_SCALE)


class Learnables:
    """Start values, rates and meaning of a unit's flat vector.

    Attributes:
        parts: One per quantizer name given, in that order.
        start: The flat vector before the first step.
        constant_rates: Adam's step size of each element that does not change.
        falling_rates: What is added to it at first and falls to 0 in a cosine.
        tensors: What the step reads, by name: ``0.base``, ``0.zero`` and so on, by the quantizer's
            number.
    """

    def __init__(
        self,
        student: Student,
        unit: Unit,
        course: Course,
        names: list[str],
        originals: dict[str, Tensor],
    ) -> None:
        """Lay out the vector.

        Args:
            student: As it is now; its parameters and scales are where learning starts.
            unit: What is learnt.
            course: What is learnt of it.
            names: Quantizers in the order of the unit's graph function.
            originals: Weights to learn from in place of the student's, by path; one that stays is
                the student's.
        """
        self._names, self._course = names, course
        paths = weight_paths(student)
        self._quantizers = [student.quantizers[name] for name in names]
        self.tensors: dict[str, Tensor] = {}
        self.parts: list[Part] = []
        self._starts: list[Tensor] = []
        self._rates: list[tuple[float, float]] = []
        self._length = 0
        for number, name in enumerate(names):
            quantizer = student.quantizers[name]
            weight = None
            if quantizer.axis is not None:
                weight = attribute(student.program, paths[name]).detach()
            learns = course.rounding and name in unit.weights
            if weight is not None and learns:
                weight = originals.get(paths[name], weight).detach()
                self.parts.append(self._rounding(number, quantizer, weight))
            elif weight is not None:
                self.tensors[f"{number}.value"] = quantizer.quantize(weight).detach().clone()
                self.tensors[f"{number}.scale"] = quantizer.scale.detach().clone()
                self.parts.append(Part("value"))
            else:
                self.parts.append(self._activation(number, quantizer, name in unit.activations))
        device = student.device
        self.start = torch.cat([torch.zeros(0, device=device), *self._starts])
        constant = [start.new_full((len(start),), rate[0]) for start, rate in self._pairs()]
        falling = [start.new_full((len(start),), rate[1]) for start, rate in self._pairs()]
        self.constant_rates = torch.cat([torch.zeros(0, device=device), *constant])
        self.falling_rates = torch.cat([torch.zeros(0, device=device), *falling])

    def _pairs(self) -> list[tuple[Tensor, tuple[float, float]]]:
        return list(zip(self._starts, self._rates, strict=True))

    def _add(self, values: Tensor, constant: float, falling: float) -> tuple[int, tuple[int, ...]]:
        place = (self._length, tuple(values.shape))
        self._starts.append(values.reshape(-1))
        self._rates.append((constant, falling))
        self._length += values.numel()
        return place

    def _grid(self, number: int, quantizer: AffineFakeQuantizer, shape: list[int]) -> Tensor:
        """Put the quantizer's grid among the tensors; gives its scale in this shape."""
        scale = quantizer.scale.detach().clone().view(shape)
        bounds = (float(quantizer.quant_min), float(quantizer.quant_max))
        self.tensors |= {
            f"{number}.scale": scale,
            f"{number}.zero": quantizer.zero_point.detach().to(scale).view(shape),
            # As tensors: blocks that differ in bits alone are then one compiled function.
            f"{number}.low": scale.new_tensor(bounds[0]),
            f"{number}.high": scale.new_tensor(bounds[1]),
        }
        return scale

    def _rounding(self, number: int, quantizer: AffineFakeQuantizer, weight: Tensor) -> Part:
        course, shape = self._course, [1] * weight.dim()
        shape[quantizer.axis or 0] = -1
        scale = self._grid(number, quantizer, shape)
        base, logits = split(weight, scale)
        if weight.dim() == 4:
            base = base.contiguous(memory_format=torch.channels_last)
        self.tensors[f"{number}.base"] = base.to(scale)
        lying = logits.permute(0, 2, 3, 1) if weight.dim() == 4 else logits
        place = (
            self._add(lying, course.config.rounding_learning_rate, 0.0)[0],
            tuple(weight.shape),
        )
        if course.weight_scale_rate == 0:
            return Part("rounding", place)
        zeros = torch.zeros_like(scale)
        return Part("rounding", place, self._add(zeros, 0.0, course.weight_scale_rate))

    def _activation(self, number: int, quantizer: AffineFakeQuantizer, owned: bool) -> Part:
        scale, course = self._grid(number, quantizer, []), self._course
        if not (owned and course.activations and course.activation_scale_rate > 0):
            return Part("activation")
        zero = torch.zeros_like(scale)
        return Part("activation", None, self._add(zero, 0.0, course.activation_scale_rate))

    def weight(self, number: int) -> Tensor:
        """About the weight that a quantizer gives: every code rounded down."""
        if f"{number}.value" in self.tensors:
            return self.tensors[f"{number}.value"]
        return self.tensors[f"{number}.base"] * self.tensors[f"{number}.scale"]

    def gradient_factors(self, elements: list[int]) -> Tensor:
        """LSQ's factor of each element's gradient: ``1 / sqrt(N · steps above zero)``.

        Args:
            elements: N, elements that each quantizer reads in a batch.
        """
        factors = torch.ones_like(self.start)
        for part, quantizer, count in zip(self.parts, self._quantizers, elements, strict=True):
            if part.role == "activation" and part.scale is not None:
                largest = quantizer.quant_max - int(quantizer.zero_point)
                slice_of(factors, part.scale).fill_((count * max(largest, 1)) ** -0.5)
        return factors

    def outcome(self, flat: Tensor) -> dict[str, Tensor]:
        """What the vector means for the student: ``name|scale``, ``name|rounding`` and so on."""
        found: dict[str, Tensor] = {}
        relative = self._course.relative_scales
        for number, (name, part) in enumerate(zip(self._names, self.parts, strict=True)):
            if part.logits is None and part.scale is None:
                continue
            scale = self.tensors[f"{number}.scale"]
            if part.scale is not None:
                scale = learnt_scale(scale, slice_of(flat, part.scale), relative=relative)
            quantizer = self._quantizers[number]
            found[f"{name}|scale"] = scale.detach().reshape(quantizer.scale.shape).clone()
            found[f"{name}|zero_point"] = quantizer.zero_point.detach().clone()
            if part.logits is not None:
                base = self.tensors[f"{number}.base"]
                found[f"{name}|base_codes"] = base.to(torch.int32).contiguous()
                found[f"{name}|rounding"] = rounded_up(
                    logits_of(flat, part.logits).detach()
                ).contiguous()
        return found
