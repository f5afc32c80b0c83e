"""What every tensor of a student looks like, told by its BatchNorms and not by any image.

Each tensor is described channel by channel as a clipped normal. A layer that a BatchNorm was folded
into starts anew: its output has the BatchNorm's shift as mean and its scale as deviation. From
there the description is carried on:

=====================  =========================================================================
clips                  the same normal, clipped
moves, concatenation   the same channels elsewhere
additions, products    mean and variance of independent operands
averages               the mean stays, and the variance too (positions of one channel say the same)
max pools              the largest of √(values in the window): neighbours say nearly the same
activation functions   mean and variance by quadrature
other layers           mean and variance of a weighted sum of independent inputs
anything else          unknown, and so is what follows until the next BatchNorm
=====================  =========================================================================

Source: Nagel et al. 2019, arXiv:1906.04721, sections 4.1 and 4.2, for layers with BatchNorm and
    ReLU. The rest is ours, and as rough as independence is.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from emptyset.graph.batch_norm import BATCH_NORM_OUTPUT, output_statistics
from emptyset.graph.channel_labels import (
    MAX_POOLS,
    channel_axis,
    channels_along,
    labels_behind,
    moves_values,
    own_labels,
    reduced_axes,
    shape_of,
    value_of,
)
from emptyset.graph.computed_weights import values_without_images
from emptyset.graph.edits import OUTPUT_DEVIATION, OUTPUT_MEAN, channel_clip_bounds, has
from emptyset.graph.operators import (
    AVERAGE,
    argument,
    attribute,
    clip_bounds,
    is_clip,
    is_getitem,
    is_weighted,
    layer_path,
    name_of,
    parameter_of,
)
from emptyset.graph.student import Student
from emptyset.images.input_spec import InputSpec
from emptyset.ranges.clipped_normal import ClippedNormal, joined

# Functions of one value that may have other constants besides.
FUNCTIONS = {
    "silu", "gelu", "hardswish", "hardsigmoid", "sigmoid", "tanh", "elu", "celu", "selu", "mish",
    "softplus", "leaky_relu", "prelu", "exp", "abs", "neg", "div", "pow", "sqrt", "square",
    "hardtanh", "clamp", "relu6", "rsub",
}  # fmt: skip

# A description, and the axis of the tensor that its channels lie along, from 0.
Told = tuple[ClippedNormal, int]


class Known(Mapping[fx.Node, ClippedNormal]):
    """Description of every tensor that is known, by node.

    Attributes:
        constants: Value of every tensor that is the same for all images.
    """

    def __init__(self, constants: Mapping[fx.Node, Tensor]) -> None:
        self.constants = constants
        self._told: dict[fx.Node, Told] = {}

    def __getitem__(self, node: fx.Node) -> ClippedNormal:
        return self._told[node][0]

    def __iter__(self) -> Iterator[fx.Node]:
        return iter(self._told)

    def __len__(self) -> int:
        return len(self._told)

    def add(self, node: fx.Node, told: Told) -> None:
        """Tell one more; a description that does not fit the tensor is left out."""
        if shape_of(node)[told[1]] == len(told[0]):
            self._told[node] = told

    def axis(self, node: fx.Node) -> int:
        """Axis of the tensor that its channels lie along, from 0."""
        return self._told[node][1]

    def read_by(self, layer: fx.Node) -> ClippedNormal | None:
        """Description of what a layer reads; None where its channels are no channels of that."""
        source: Any = layer.args[0]
        return self[source] if source in self and self.axis(source) == channel_axis(layer) else None


@torch.no_grad()
def activation_statistics(student: Student) -> Known:
    """Description of every tensor that is known, by node."""
    program = student.program
    known = Known(values_without_images(program))
    for node in program.graph.nodes:
        if node.op == "placeholder":
            told: Told | None = _image(student.teacher.input), channel_axis(node)
        elif node.op == "call_module":
            told = _same(node, known)
        else:
            told = _described(program, node, known)
        if told is not None:
            known.add(node, told)
    return known


def layer_statistics(program: fx.GraphModule, node: fx.Node) -> ClippedNormal | None:
    """What BatchNorm tells of a layer's output, as refiners left it; None without BatchNorm."""
    told = node.meta.get(BATCH_NORM_OUTPUT)
    if is_weighted(node):
        paths = [f"{layer_path(node)}.{name}" for name in (OUTPUT_MEAN, OUTPUT_DEVIATION)]
        if has(program, paths[0]):
            changed = (attribute(program, path).detach().cpu() for path in paths)
            return ClippedNormal.of(*changed)
    elif name_of(node) == "batch_norm":
        told = output_statistics(program, node)
    return None if told is None else ClippedNormal.of(*(values.cpu() for values in told))


def _image(spec: InputSpec) -> ClippedNormal:
    """Normalised as training normalises: mean 0, deviation 1. Plain pixels: as if uniform."""
    low, high = (float(end) for end in spec.pixel_range())
    mean, deviation = torch.zeros(spec.shape[0]), torch.ones(spec.shape[0])
    if not any(spec.mean):
        mean, deviation = mean + (low + high) / 2, deviation * (high - low) / math.sqrt(12)
    return ClippedNormal.of(mean, deviation).clipped(low, high)


def _same(node: fx.Node, known: Known) -> Told | None:
    """What is known of the node's input."""
    source = argument(node, 0)
    if not isinstance(source, fx.Node) or source not in known:
        return None
    return known[source], known.axis(source)


def _described(program: fx.GraphModule, node: fx.Node, known: Known) -> Told | None:
    told = layer_statistics(program, node)
    if told is not None:
        # Behind a BatchNorm, folded or not, channels come second.
        return told, channel_axis(node) if is_weighted(node) else 1
    if is_weighted(node):
        found = _weighted_sum(program, node, known.read_by(node))
        return None if found is None else (found, channel_axis(node))
    kind = name_of(node)
    if kind in MAX_POOLS or is_getitem(node):
        return _largest(node, known)
    if not any(source in known for source in node.all_input_nodes):
        return None
    if kind in ("add", "sub", "mul"):
        return _binary(node, known)
    if moves_values(node):
        return _moved(node, known)
    told_source = _same(node, known)
    if told_source is None:
        return None
    source, axis = told_source
    if kind in AVERAGE:
        return _average(node, source, axis)
    bounds = clip_bounds(node) if is_clip(node) else channel_clip_bounds(program, node)
    if bounds is not None:
        low, high = (end.cpu() if isinstance(end, Tensor) else end for end in bounds)
        return source.clipped(low, high), axis
    return _function(node, source, axis, known.constants) if kind in FUNCTIONS else None


def _weighted_sum(
    program: fx.GraphModule, node: fx.Node, source: ClippedNormal | None
) -> ClippedNormal | None:
    """A layer without BatchNorm: its inputs are taken for independent."""
    weight_node, bias_node = parameter_of(node.args[1]), parameter_of(argument(node, 2))
    if source is None or weight_node is None or name_of(node) == "conv_transpose2d":
        return None
    weight: Tensor = attribute(program, str(weight_node.target)).detach().double().cpu()
    groups = argument(node, 6) or 1
    if len(source) != weight.shape[1] * groups:
        return None
    mean, variance = source.moments()
    first = grouped_sum(weight, mean, groups)
    second = grouped_sum(weight.square(), variance, groups)
    bias = 0.0 if bias_node is None else attribute(program, str(bias_node.target)).detach().cpu()
    return ClippedNormal.of(first + bias, second.sqrt())


def grouped_sum(weight: Tensor, inputs_C: Tensor, groups: int) -> Tensor:
    """``(C_out,)``: what a layer gives for an image that is constant in every channel.

    Args:
        weight: ``(C_out, C_in / groups, ...)``.
        inputs_C: ``(C_in,)``.
        groups: Of the convolution.
    """
    matrix = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
    parts = matrix.view(groups, -1, matrix.shape[1])
    values = inputs_C.to(matrix).view(groups, 1, -1)
    return (parts * values).sum(2).flatten()


def _average(node: fx.Node, source: ClippedNormal, axis: int) -> Told | None:
    axes = reduced_axes(node)
    if axis in axes:
        return None
    dropped = len(shape_of(node.all_input_nodes[0])) > len(shape_of(node))
    return source.averaged(), axis - sum(other < axis for other in axes if dropped)


def _largest(node: fx.Node, known: Known) -> Told | None:
    """Values of a max pool; one that tells their places too gives both, and they are the first."""
    pool = node.all_input_nodes[0] if is_getitem(node) else node
    told = _same(pool, known)
    if told is None or name_of(pool) not in MAX_POOLS or not isinstance(value_of(node), Tensor):
        return None
    if (pool is not node and node.args[1] != 0) or told[1] in reduced_axes(pool):
        return None
    return told[0].largest_of(math.sqrt(_window(pool, node))), told[1]


def _window(pool: fx.Node, values: fx.Node) -> int:
    """Values that one output of a max pool is chosen from."""
    if name_of(pool) == "adaptive_max_pool2d":
        inside, outside = (shape_of(n)[-2:] for n in (pool.all_input_nodes[0], values))
        return max(1, math.prod(inside) // math.prod(outside))
    size: Any = pool.args[1]
    sides = [size] if isinstance(size, int) else list(size)
    return int(math.prod(sides * 2 if len(sides) == 1 else sides))


def _binary(node: fx.Node, known: Known) -> Told | None:
    """Sum, difference or product of two tensors, or of one and a constant."""
    rank, described = len(shape_of(node)), [n for n in node.all_input_nodes if n in known]
    # Operands of fewer axes are aligned at the last one.
    axes = {known.axis(n) + rank - len(shape_of(n)) for n in described}
    if len(axes) != 1:
        return None
    (axis,) = axes
    found = _combined(node, *(_operand(node, n, known, axis) for n in node.args[:2]))
    return None if found is None else (found, axis)


def _combined(
    node: fx.Node, one: ClippedNormal | Tensor | None, other: ClippedNormal | Tensor | None
) -> ClippedNormal | None:
    kind, share = name_of(node), node.kwargs.get("alpha", 1)
    if one is None or other is None or not isinstance(share, int | float):
        return None
    if not isinstance(one, ClippedNormal):
        if not isinstance(other, ClippedNormal):
            return None
        turned = other if kind != "sub" else other.scaled(-share)
        return turned.scaled(one) if kind == "mul" else turned.scaled(1.0, one)
    if not isinstance(other, ClippedNormal):
        if kind == "mul":
            return one.scaled(other)
        return one.scaled(1.0, other * (share if kind == "add" else -share))
    if len(one) != len(other):
        return None
    if kind == "mul":
        return one.times(other)
    return one.plus(other if (kind, share) == ("add", 1) else other.scaled(
        share if kind == "add" else -share
    ))  # fmt: skip


def _operand(node: fx.Node, value: Any, known: Known, axis: int) -> ClippedNormal | Tensor | None:
    """A described tensor, a constant ``()`` or ``(C,)``, or None."""
    if isinstance(value, int | float):
        return torch.tensor(float(value), dtype=torch.double)
    if not isinstance(value, fx.Node):
        return None
    # Through a quantizer of weights.
    constant = known.constants.get(parameter_of(value) or value)
    return known.get(value) if constant is None else _per_channel(node, constant, axis)


def _per_channel(node: fx.Node, constant: Tensor, axis: int) -> Tensor | None:
    """``(C,)`` value of a constant per channel of the node's tensor; None where it differs."""
    try:
        whole = constant.detach().double().cpu().expand(shape_of(node))
    except RuntimeError:
        return None
    rows = whole.movedim(axis, 0).flatten(1)
    return rows[:, 0] if bool((rows == rows[:, :1]).all()) else None


def _function(
    node: fx.Node, source: ClippedNormal, axis: int, constants: Mapping[fx.Node, Tensor]
) -> Told | None:
    rank, others = len(shape_of(node)), [n for n in node.all_input_nodes if n is not node.args[0]]
    if not all(n in constants and _is_per_channel(node, constants[n], axis) for n in others):
        return None

    def concrete(value: fx.Node) -> Any:
        return constants[value].detach().double().cpu()

    def apply(points: Tensor) -> Tensor:
        shape = [len(points)] + [1] * (rank - 1)
        shape[axis] = points.shape[1]
        rest: Any = fx.node.map_arg(node.args[1:], concrete)
        values: Tensor = node.target(points.view(shape), *rest, **node.kwargs)  # type: ignore[operator]
        return values.reshape(points.shape)

    return source.through(apply), axis


def _is_per_channel(node: fx.Node, constant: Tensor, axis: int) -> bool:
    """Whether a constant has one value, or one for each channel."""
    if constant.numel() == 1 or name_of(node) == "prelu":
        return constant.numel() == 1 or axis == 1
    shape = shape_of(node)
    sizes = (1,) * (len(shape) - constant.dim()) + tuple(constant.shape)
    return sizes == (*[1] * axis, shape[axis], *[1] * (len(shape) - axis - 1))


def _moved(node: fx.Node, known: Known) -> Told | None:
    """Channels that stand elsewhere, perhaps beside those of other tensors."""
    if not isinstance(value_of(node), Tensor):
        return None
    inputs = node.args[0] if isinstance(node.args[0], list | tuple) else [node.args[0]]
    data = [value for value in inputs if isinstance(value, fx.Node)]
    if any(value not in known for value in data):
        return None
    labels, start = {}, 0
    for value in dict.fromkeys(data):
        labels[value] = own_labels(value, known.axis(value)) + start
        start += len(known[value])
    moved = labels_behind(node, labels)
    if moved is None:
        return None
    # Only where all channels are one can there be two such axes.
    for axis in dict.fromkeys([known.axis(data[0]), *range(moved.dim() - 1, 0, -1)]):
        channels = channels_along(moved, axis) if axis < moved.dim() else None
        if channels is not None:
            shares = (moved > 0).double().movedim(axis, 0).flatten(1).mean(dim=1)
            return joined([known[value] for value in labels]).taken(channels, shares), axis
    return None
