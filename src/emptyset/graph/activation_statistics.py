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
from typing import Any

import torch
from torch import Tensor, fx

from emptyset.graph.batch_norm import BATCH_NORM_OUTPUT, output_statistics
from emptyset.graph.channel_labels import (
    channel_axis,
    channels_along,
    labels_behind,
    moves_values,
    own_labels,
    shape_of,
    value_of,
)
from emptyset.graph.edits import OUTPUT_DEVIATION, OUTPUT_MEAN, channel_clip_bounds, has
from emptyset.graph.operators import (
    AVERAGE,
    argument,
    attribute,
    clip_bounds,
    is_clip,
    is_parameter,
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

Known = dict[fx.Node, ClippedNormal]


@torch.no_grad()
def activation_statistics(student: Student) -> Known:
    """Description of every tensor that is known, by node; along its `channel_axis`."""
    program = student.program
    known: Known = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            found: ClippedNormal | None = _image(student.teacher.input)
        elif node.op == "call_module":
            found = known.get(node.args[0])
        else:
            found = _described(program, node, known)
        if found is not None:
            known[node] = found
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


def _described(program: fx.GraphModule, node: fx.Node, known: Known) -> ClippedNormal | None:
    told = layer_statistics(program, node)
    if told is not None:
        return told
    sources = [source for source in node.all_input_nodes if source in known]
    if not sources:
        return None
    kind = name_of(node)
    if is_weighted(node):
        return _weighted_sum(program, node, known)
    if is_clip(node):
        low, high = clip_bounds(node) or (-math.inf, math.inf)
        return known[sources[0]].clipped(low, high)
    bounds = channel_clip_bounds(program, node)
    if bounds is not None:
        return known[sources[0]].clipped(*(end.cpu() for end in bounds))
    if kind in AVERAGE:
        return _average(node, known[sources[0]])
    if kind in ("max_pool2d", "adaptive_max_pool2d"):
        return known[sources[0]].largest_of(math.sqrt(_window(node)))
    if kind in ("add", "sub", "mul"):
        return _binary(program, node, known)
    if kind in FUNCTIONS and len(sources) == 1:
        return _function(program, node, known[sources[0]])
    if moves_values(node):
        return _moved(node, {source: known[source] for source in sources})
    return None


def _weighted_sum(program: fx.GraphModule, node: fx.Node, known: Known) -> ClippedNormal | None:
    """A layer without BatchNorm: its inputs are taken for independent."""
    source = known.get(node.args[0])  # type: ignore[arg-type]
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


def _average(node: fx.Node, source: ClippedNormal) -> ClippedNormal | None:
    kept = len(shape_of(node)) < 2 or shape_of(node)[channel_axis(node)] == len(source)
    return source.averaged() if kept else None


def _window(node: fx.Node) -> int:
    """Values that one output of a max pool is chosen from."""
    if name_of(node) == "adaptive_max_pool2d":
        source: Any = node.args[0]
        inside, outside = (shape_of(n)[-2:] for n in (source, node))
        return max(1, math.prod(inside) // math.prod(outside))
    size: Any = node.args[1]
    sides = [size] if isinstance(size, int) else list(size)
    return int(math.prod(sides * 2 if len(sides) == 1 else sides))


def _binary(program: fx.GraphModule, node: fx.Node, known: Known) -> ClippedNormal | None:
    """Sum, difference or product of two tensors, or of one and a constant."""
    kind, (left, right) = name_of(node), node.args[:2]
    share = node.kwargs.get("alpha", 1)
    one, other = (_operand(program, node, value, known) for value in (left, right))
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


def _operand(
    program: fx.GraphModule, node: fx.Node, value: Any, known: Known
) -> ClippedNormal | Tensor | None:
    """A described tensor, a constant ``()`` or ``(C,)``, or None."""
    if isinstance(value, int | float):
        return torch.tensor(float(value), dtype=torch.double)
    if not isinstance(value, fx.Node):
        return None
    parameter = parameter_of(value)
    if parameter is not None:
        return _per_channel(node, attribute(program, str(parameter.target)))
    return known.get(value)


def _per_channel(node: fx.Node, constant: Tensor) -> Tensor | None:
    """``(C,)`` value of a constant per channel of the node's tensor; None where it differs."""
    shape, axis = shape_of(node), channel_axis(node)
    try:
        whole = constant.detach().double().cpu().expand(shape)
    except RuntimeError:
        return None
    rows = whole.movedim(axis, 0).flatten(1)
    return rows[:, 0] if bool((rows == rows[:, :1]).all()) else None


def _function(
    program: fx.GraphModule, node: fx.Node, source: ClippedNormal
) -> ClippedNormal | None:
    axis, rank = channel_axis(node), len(shape_of(node))
    if shape_of(node)[axis] != len(source):
        return None

    def concrete(value: fx.Node) -> Any:
        if is_parameter(value):
            return attribute(program, str(value.target)).detach().double().cpu()
        return None

    def apply(points: Tensor) -> Tensor:
        shape = [len(points)] + [1] * (rank - 1)
        shape[axis] = points.shape[1]
        rest: Any = fx.node.map_arg(node.args[1:], concrete)
        values: Tensor = node.target(points.view(shape), *rest, **node.kwargs)  # type: ignore[operator]
        return values.reshape(points.shape)

    return source.through(apply)


def _moved(node: fx.Node, sources: Known) -> ClippedNormal | None:
    """Channels that stand elsewhere, perhaps beside those of other tensors."""
    if not isinstance(value_of(node), Tensor):
        return None
    inputs = node.args[0] if isinstance(node.args[0], list | tuple) else [node.args[0]]
    data = [value for value in inputs if isinstance(value, fx.Node)]
    if any(value not in sources for value in data):
        return None
    labels, start = {}, 0
    for value in dict.fromkeys(data):
        own = own_labels(value)
        labels[value] = own + start
        start += len(sources[value])
    moved = labels_behind(node, labels)
    if moved is None:
        return None
    axis = channel_axis(node)
    channels = channels_along(moved, axis)
    if channels is None:
        return None
    shares = (moved > 0).double().movedim(axis, 0).flatten(1).mean(dim=1)
    return joined([sources[value] for value in labels]).taken(channels, shares)
