"""Where the output channels of one layer are read by other layers alone, and may be rescaled.

Between the two stand operators that give twice the value for twice the input (ReLU, leaky ReLU,
pools, moves) or clips, whose bounds are then rescaled with the channel. If one path leads to
anything else (an addition, a product, the logits), the channels of that layer stay as they are: a
residual stream has many writers and readers, and all of them would have to agree.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from emptyset.graph.channel_labels import (
    averages_zeros,
    channel_axis,
    channels_along,
    labels_behind,
    own_labels,
)
from emptyset.graph.edits import channel_clip_bounds, input_axis
from emptyset.graph.operators import (
    argument,
    attribute,
    clip_bounds,
    is_clip,
    is_weighted,
    layer_path,
    name_of,
    one_scale_per_output,
    parameter_of,
    weight_axis,
    weighted_layers,
)

# f(s x) = s f(x) for every s > 0.
HOMOGENEOUS = {"relu", "leaky_relu", "prelu"}


@dataclass(frozen=True)
class Reader:
    """One layer that reads a chain's channels.

    Attributes:
        node: The convolution or linear.
        channels: ``(C_in,)`` channel of the writer that each of its inputs is, -1 for none.
        padded: Whether it also reads zeros that stand around the writer's channels, or averages
            with such zeros.
    """

    node: fx.Node
    channels: Tensor
    padded: bool


@dataclass(frozen=True)
class Chain:
    """A layer, and everything that reads it.

    Attributes:
        writer: The layer whose output channels may be rescaled.
        readers: Layers that read them, and nothing else does.
        clips: Clips with a finite bound (other than zero) in between.
        between: All operators in between, quantizers left out, in order.
    """

    writer: fx.Node
    readers: tuple[Reader, ...]
    clips: tuple[fx.Node, ...]
    between: tuple[fx.Node, ...]

    @property
    def name(self) -> str:
        """Path of the writer."""
        return layer_path(self.writer)


def find_chains(program: fx.GraphModule) -> list[Chain]:
    """Every layer whose output channels may be rescaled, in order of execution."""
    layers = weighted_layers(program)
    alone = {layer for layer in layers if owns_its_parameters(layer)}
    found = []
    for layer in layers:
        if layer not in alone or not one_scale_per_output(layer):
            continue
        chain = _follow(program, layer)
        if chain is not None and all(reader.node in alone for reader in chain.readers):
            found.append(chain)
    return found


def owns_its_parameters(layer: fx.Node) -> bool:
    """Whether no other call (of a module that is used twice) reads this layer's weight or bias."""
    for value in (layer.args[1], argument(layer, 2)):
        while isinstance(value, fx.Node):
            if len(value.users) != 1:
                return False
            value = value.args[0] if value.op == "call_module" else None
    return True


def _follow(program: fx.GraphModule, writer: fx.Node) -> Chain | None:
    """The chain behind a layer, or None where something else reads its channels."""
    labels = {writer: own_labels(writer)}
    readers, clips, between = [], [], []
    thinned: set[fx.Node] = set()  # averages with zeros, and what is made of them
    nodes = list(program.graph.nodes)
    for node in nodes[nodes.index(writer) + 1 :]:
        only_size = node.op == "call_function" and not isinstance(
            node.meta.get("val"), Tensor | list | tuple
        )
        if only_size or not any(source in labels for source in node.all_input_nodes):
            continue
        if node.op == "output" or not isinstance(node.args[0], fx.Node | list | tuple):
            return None
        source = node.args[0]
        if is_weighted(node) and isinstance(source, fx.Node):
            axis = channel_axis(node)
            channels = channels_along(labels[source], axis)
            if channels is None:
                return None
            around = labels[source].movedim(axis, 0)[channels >= 0]
            padded = _pads(node) or source in thinned or bool((around == 0).any())
            readers.append(Reader(node, channels, padded))
            continue
        moved = _passed_on(program, writer, node, labels)
        if moved is None:
            return None
        labels[node] = moved
        if averages_zeros(node, labels) or thinned.intersection(node.all_input_nodes):
            thinned.add(node)
        if node.op == "call_function":
            between.append(node)
        if _has_finite_bound(program, node):
            clips.append(node)
    found = Chain(writer, tuple(readers), tuple(clips), tuple(between))
    return found if readers else None


def _pads(layer: fx.Node) -> bool:
    """Whether a convolution pads its input with zeros itself."""
    padding = argument(layer, 4)
    if name_of(layer) == "linear" or padding is None:
        return False
    sides = padding if isinstance(padding, list | tuple) else [padding]
    return any(side not in (0, "valid") for side in sides)


def _passed_on(
    program: fx.GraphModule, writer: fx.Node, node: fx.Node, labels: dict[fx.Node, Tensor]
) -> Tensor | None:
    """Labels behind an operator that may stand in a chain; None for any other."""
    source = node.args[0]
    clipped = is_clip(node) or channel_clip_bounds(program, node) is not None
    if name_of(node) in HOMOGENEOUS or clipped:
        assert isinstance(source, fx.Node)
        finite = _has_finite_bound(program, node)
        # Bounds per channel are only written where the clip reads the layer itself.
        return labels[source] if not finite or source is writer else None
    return labels_behind(node, labels)


def _has_finite_bound(program: fx.GraphModule, node: fx.Node) -> bool:
    bounds = clip_bounds(node) if is_clip(node) else None
    if bounds is not None:
        return any(bound != 0 and not math.isinf(bound) for bound in bounds)
    return channel_clip_bounds(program, node) is not None


def columns(weight: Tensor, node: fx.Node) -> Tensor:
    """``(C_in, n)``: all weights that each input channel is multiplied with.

    Args:
        weight: Of the layer, or shaped as it.
        node: The layer.
    """
    groups = argument(node, 6) or 1
    if name_of(node) == "conv_transpose2d":
        return weight.flatten(1)
    rows = weight.view(groups, -1, *weight.shape[1:])  # (groups, C_out / groups, C_in / groups, …)
    return rows.transpose(1, 2).reshape(groups * weight.shape[1], -1)


def scale_columns(weight: Tensor, node: fx.Node, factors: Tensor) -> Tensor:
    """The weight with every input channel's part multiplied by its factor ``(C_in,)``."""
    groups, around = argument(node, 6) or 1, [1] * (weight.dim() - 2)
    if input_axis(node) == 0:
        return weight * factors.view(-1, 1, *around)
    rows = weight.view(groups, -1, *weight.shape[1:])
    return (rows * factors.view(groups, 1, -1, *around)).view_as(weight)


def scale_rows(weight: Tensor, node: fx.Node, factors: Tensor) -> Tensor:
    """The weight with every output channel's part multiplied by its factor ``(C_out,)``."""
    shape = [1] * weight.dim()
    shape[weight_axis(node)] = -1
    return weight * factors.view(shape)


def weight_of(program: fx.GraphModule, node: fx.Node) -> Tensor:
    """The layer's weight parameter itself."""
    parameter = parameter_of(node.args[1])
    assert parameter is not None
    weight: Tensor = attribute(program, str(parameter.target))
    return weight


def bias_of(program: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """The layer's bias parameter itself, or None."""
    parameter = parameter_of(argument(node, 2))
    return None if parameter is None else attribute(program, str(parameter.target))


def inputs_per_group(node: fx.Node, weight: Tensor) -> int:
    """How many input channels one output channel reads."""
    if name_of(node) == "conv_transpose2d":
        return weight.shape[0] // (argument(node, 6) or 1)
    return weight.shape[1]


def is_dead(ranges: Tensor) -> Tensor:
    """Where a range is zero for all purposes: nothing to balance, and no scale to divide by."""
    largest = ranges.max() if ranges.numel() else torch.tensor(0.0)
    return ranges <= 1e-8 * largest
