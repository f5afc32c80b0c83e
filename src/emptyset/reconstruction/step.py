"""One optimizer step of a unit, as a function of tensors that it changes in place.

Written once: run as it is, or traced with its backward and Adam's update into one graph and
compiled. It knows shapes and roles, no unit, so equal units share what was compiled.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from emptyset.quantizers.adaptive_rounding import (
    relaxed_weight,
    rounding_penalty,
    rounding_share,
)
from emptyset.reconstruction.activations import quantized_activation
from emptyset.reconstruction.config import Course
from emptyset.reconstruction.graph_function import GraphFunction
from emptyset.reconstruction.learnables import Part, learnt_scale, logits_of, slice_of
from emptyset.reconstruction.random_bits import bits_of, word_count
from emptyset.reconstruction.schedules import (
    ADAM_EPSILON,
    ADAM_FIRST,
    ADAM_SECOND,
    BETA,
    COSINE,
    FIRST_WEIGHT,
    PENALTY,
    SECOND_WEIGHT,
)

Tensors = Mapping[str, Tensor]
Step = Callable[[Tensors], Tensor]
"""Changes ``flat``, ``first`` and ``second`` in place; gives the loss before it."""


@dataclass(frozen=True)
class Recipe:
    """Everything that a step's code depends on, besides the shapes of its tensors.

    Attributes:
        function: The unit's stretch.
        parts: Role of each of its quantizers.
        masks: Shape of every random mask of a step, in the order in which they are asked for.
        channel_axis: Of the output.
        course: What is learnt, by which rule.
        fused: Written for a compiler (or an accelerator), not for eager mode on a CPU.
    """

    function: GraphFunction
    parts: tuple[Part, ...]
    masks: tuple[tuple[int, ...], ...]
    channel_axis: int
    course: Course
    fused: bool

    def key(self, tensors: Tensors) -> Hashable:
        """Equal for units that share one compiled step."""
        course = self.course
        return (
            self.function.structure, self.parts, self.masks, self.channel_axis, course.inputs,
            course.activations, course.kept == 1.0, course.mask, course.exponent,
            course.weighting, course.relative_scales,
            tuple((n, tuple(t.shape), t.stride(), t.dtype) for n, t in sorted(tensors.items())),
        )  # fmt: skip


def unit_step(recipe: Recipe) -> Step:
    """The step of units like this one. Its tensors, by name:

    * ``flat``, ``first``, ``second``: parameters and Adam's averages;
    * ``row``: this step's row of the table; ``index``: its images; ``words``: its random words;
    * ``constant_rates``, ``falling_rates``, ``gradient_factors``: shaped as ``flat``;
    * ``x``, ``x_float``, ``y``, ``weighting``: rows of images, all or (with ``x.place`` and so on)
      this step's own;
    * ``0.base`` and so on: of the quantizers; ``constant.0`` and so on: of the function.
    """

    def step(tensors: Tensors) -> Tensor:
        row = tensors["row"]
        with torch.enable_grad():
            flat = tensors["flat"].detach().requires_grad_()
            loss = _loss(recipe, tensors, flat, row)
            (gradient,) = torch.autograd.grad(loss, [flat], materialize_grads=True)
        with torch.no_grad():
            _adam(tensors, gradient, row)
        return loss.detach()

    return step


def _loss(recipe: Recipe, tensors: Tensors, flat: Tensor, row: Tensor) -> Tensor:
    """Distance of outputs, and the penalty on undecided roundings."""
    course = recipe.course
    quantizers = _Quantizers(recipe, tensors, flat)
    function = recipe.function
    constants = [tensors[f"constant.{i}"] for i in range(len(function.constants))]
    out = function(_inputs(recipe, tensors, quantizers), quantizers, constants)
    distance = out - _rows(tensors, "y")
    if course.weighting == "fisher_full":
        # BRECQ's: a stand-in for the full Fisher matrix, one number per image and element.
        weighted = distance.abs() * _rows(tensors, "weighting")
        dots = weighted.flatten(1).sum(1).view(-1, *[1] * (distance.dim() - 1))
        loss = (dots * weighted).mean() / 100
    else:
        power = distance.square() if course.exponent == 2 else distance.abs().pow(course.exponent)
        if course.weighting == "fisher":
            power = power * _rows(tensors, "weighting").square()
        # Summed over channels, mean over all else; one sum is faster than one per position.
        loss = power.sum() * (power.shape[recipe.channel_axis] / power.numel())
    for share in quantizers.shares:
        loss = loss + row[PENALTY] * rounding_penalty(share, row[BETA])
    return loss


def _inputs(recipe: Recipe, tensors: Tensors, quantizers: "_Quantizers") -> Tensor:
    """What the unit reads in this step."""
    course = recipe.course
    x = _rows(tensors, "x")
    if course.inputs != "mixed":
        return x
    chosen, other = quantizers.next_mask(x), _rows(tensors, "x_float")
    if chosen is None:
        return x
    return torch.where(chosen, x, other) if recipe.fused else torch.lerp(other, x, chosen)


def _rows(tensors: Tensors, name: str) -> Tensor:
    """This step's images of a tensor that holds all of them; four axes lie channels last."""
    index = tensors.get(f"{name}.place", tensors["index"])
    rows = tensors[name].index_select(0, index).float()
    return rows.permute(0, 3, 1, 2) if rows.dim() == 4 else rows


class _Quantizers:
    """What the unit's quantizers compute in one step.

    Attributes:
        shares: ``h(V)`` of every weight whose rounding is learnt, once it was asked for.
    """

    def __init__(self, recipe: Recipe, tensors: Tensors, flat: Tensor) -> None:
        self._recipe, self._tensors, self._flat = recipe, tensors, flat
        self._weights: dict[int, Tensor] = {}
        self._used = 0
        self.shares: list[Tensor] = []

    def __call__(self, number: int, x: Tensor | None) -> Tensor:
        """The weight that is learnt, or ``x`` quantized."""
        if x is None:
            if number not in self._weights:
                self._weights[number] = self._weight(number)
            return self._weights[number]
        course, tensors = self._recipe.course, self._tensors
        if not course.activations:
            return x
        grid = [tensors[f"{number}.{name}"] for name in ("zero", "low", "high")]
        return quantized_activation(
            x, self._scale(number), *grid, chosen=self.next_mask(x), mask=course.mask,
            fused=self._recipe.fused,
        )  # fmt: skip

    def rounded_bias(self, inputs: int, weight: int, bias: Tensor) -> Tensor:
        """The bias in whole steps of input times weight, as the student rounds it."""
        if not self._recipe.course.activations:
            return bias
        with torch.no_grad():
            step = (self._scale(inputs) * self._scale(weight).reshape(-1)).double()
            return ((bias.double() / step).round() * step).float()

    def next_mask(self, x: Tensor) -> Tensor | None:
        """Random choice of elements of ``x``, or None: all.

        bool for a compiler, else 0 and 1 as floating point.
        """
        if self._recipe.course.kept == 1.0:
            return None
        shape = tuple(x.shape)
        count = word_count(shape)
        mine = self._tensors["words"][self._used : self._used + count]
        self._used += count
        bits = bits_of(mine, shape)
        return bits.bool() if self._recipe.fused else bits.to(x.dtype)

    def _weight(self, number: int) -> Tensor:
        part, tensors = self._recipe.parts[number], self._tensors
        if part.logits is None:
            return tensors[f"{number}.value"]
        share = rounding_share(logits_of(self._flat, part.logits))
        self.shares.append(share)
        grid = [tensors[f"{number}.{name}"] for name in ("zero", "low", "high")]
        return relaxed_weight(tensors[f"{number}.base"], share, self._scale(number), *grid)

    def _scale(self, number: int) -> Tensor:
        scale, place = self._tensors[f"{number}.scale"], self._recipe.parts[number].scale
        if place is None:
            return scale
        relative = self._recipe.course.relative_scales
        return learnt_scale(scale, slice_of(self._flat, place), relative=relative)


def _adam(tensors: Tensors, gradient: Tensor, row: Tensor) -> None:
    """Adam's update of the flat vector."""
    if "gradient_factors" in tensors:
        gradient = gradient * tensors["gradient_factors"]
    first = torch.lerp(tensors["first"], gradient, 1 - ADAM_FIRST)
    second = torch.lerp(tensors["second"], gradient.square(), 1 - ADAM_SECOND)
    size = (second / row[SECOND_WEIGHT]).sqrt() + ADAM_EPSILON
    rates = tensors["constant_rates"] + row[COSINE] * tensors["falling_rates"]
    tensors["flat"].sub_(rates * (first / row[FIRST_WEIGHT]) / size)
    tensors["first"].copy_(first)
    tensors["second"].copy_(second)
