"""Which channel of an earlier tensor each value of a later one comes from.

Reshapes, pads, slices, concatenations and pools only move values. A tensor that holds its own
channel numbers is sent through the very operator, and what comes out tells where every value came
from. No operator needs a rule of its own, so `channel_shuffle` written as view, transpose, view is
followed like any other.

======  ====================================================================
label   meaning
======  ====================================================================
1, 2 …  the value is one of this channel, or an average of such and of zeros
0       it is a zero that a pad wrote
-1      it comes from another tensor, which may hold anything
======  ====================================================================
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from emptyset.graph.operators import (
    AVERAGE,
    CLIP,
    PASS,
    attribute,
    is_getitem,
    is_parameter,
    is_pass,
    is_weighted,
    name_of,
)

MAX_POOLS = {"max_pool2d", "adaptive_max_pool2d"}
BLENDS = AVERAGE | {"upsample_bilinear2d", "upsample_bicubic2d"}
# All but `mean` go along the last two axes.
POOLS = MAX_POOLS | BLENDS | {"upsample_nearest2d"}
FOREIGN = -1


def channel_axis(node: fx.Node) -> int:
    """Axis of the channels that a layer reads and writes: the last of linears, else the second.

    Args:
        node: A convolution, linear or BatchNorm, the image, or a clip right behind one of them.
    """
    while not (is_weighted(node) or node.op == "placeholder" or name_of(node) == "batch_norm"):
        assert node.op == "call_module" or name_of(node) in CLIP
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node = source
    return len(shape_of(node)) - 1 if name_of(node) == "linear" else 1


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of the node's tensor, the batch as large as that of the example."""
    return tuple(_whole(size) for size in value_of(node).shape)


def value_of(node: fx.Node) -> Any:
    """Fake value of a node; a fake quantizer gives what it reads."""
    while node.op == "call_module":
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node = source
    return node.meta["val"]


def own_labels(node: fx.Node, axis: int | None = None) -> Tensor:
    """A tensor like the node's, every value the number of its channel counted from 1.

    Args:
        node: Any tensor.
        axis: Of its channels, from 0; None: that of a layer.
    """
    shape, axis = shape_of(node), channel_axis(node) if axis is None else axis
    around = [1] * len(shape)
    around[axis] = shape[axis]
    numbers = torch.arange(1, shape[axis] + 1, dtype=torch.float32)
    return numbers.view(around).expand(shape)


def labels_behind(node: fx.Node, labels: Mapping[fx.Node, Tensor]) -> Tensor | None:
    """Labels of a node's output from those of its inputs; None: it does more than move values.

    Args:
        node: An operator that reads at least one labelled tensor.
        labels: By node; of an operator with several outputs, those of the first.
    """
    source = node.args[0]
    if node.op == "call_module" or _is_first_output(node):
        assert isinstance(source, fx.Node)
        return labels[source]
    if name_of(node) in POOLS:
        return _pooled(node, labels)
    if not moves_values(node) or any(map(_is_computed_index, node.all_input_nodes)):
        return None
    return _sent_through(node, labels)


def averages_zeros(node: fx.Node, labels: Mapping[fx.Node, Tensor]) -> bool:
    """Whether an operator takes averages over labelled values and zeros around them.

    Args:
        node: An operator that labels were found behind.
        labels: By node.
    """
    if name_of(node) not in BLENDS:
        return False
    share = _sent_through(node, {n: (labels[n] > 0).double() for n in node.all_input_nodes[:1]})
    return bool(((share - share.round()).abs() > 1e-9).any())


def reduced_axes(node: fx.Node) -> list[int]:
    """Axes of the input that a pool or an average goes along, from 0."""
    rank = len(shape_of(node.all_input_nodes[0]))
    axes: Any = [-2, -1]
    if name_of(node) == "mean":
        axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    axes = [axes] if isinstance(axes, int) else list(axes or range(rank))
    return [axis % rank for axis in axes]


def _pooled(node: fx.Node, labels: Mapping[fx.Node, Tensor]) -> Tensor | None:
    """Labels behind a pool or an average; None where it may go across channels."""
    source = node.all_input_nodes[0]
    one, mixed = _only_label(labels[source], reduced_axes(node))
    if bool(mixed.any()):
        return None
    if name_of(node) == "mean":
        return one.reshape(shape_of(node))
    there = _sent_through(node, {source: (labels[source] != 0).float()})
    return torch.where(there != 0, one, 0.0)


def _only_label(labels: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
    """The label of all values along some axes but for zeros, and where there is none."""
    low, high = labels.amin(axes, keepdim=True), labels.amax(axes, keepdim=True)
    inner = labels.where(labels > 0, torch.inf).amin(axes, keepdim=True)
    mixed = (high > 0) & ((inner != high) | (low < 0))
    return torch.where(high > 0, high, low), mixed


def _sent_through(node: fx.Node, values: Mapping[fx.Node, Tensor]) -> Tensor:
    """What the operator makes of these values, and of what is foreign to them; its first output."""

    def concrete(value: fx.Node) -> Any:
        if value in values:
            return values[value]
        found = value_of(value)
        if not isinstance(found, Tensor):
            return _whole(found)
        if not found.is_floating_point():
            return _constant(value)
        return torch.full(shape_of(value), float(FOREIGN))

    arguments: Any = fx.node.map_arg(node.args, concrete)
    named: Any = fx.node.map_arg(node.kwargs, concrete)
    found: Any = node.target(*arguments, **named)  # type: ignore[operator]
    moved: Tensor = found[0] if isinstance(found, tuple) else found
    return moved


def _is_first_output(node: fx.Node) -> bool:
    """Whether it picks the values of a max pool that gives their places too."""
    if not is_getitem(node) or node.args[1] != 0:
        return False
    return name_of(node.all_input_nodes[0]) in MAX_POOLS


def _is_computed_index(node: fx.Node) -> bool:
    """Whether the node gives whole numbers that the graph does not hold as a constant."""
    value = None if is_parameter(node) else value_of(node)
    return isinstance(value, Tensor) and not value.is_floating_point()


def moves_values(node: fx.Node) -> bool:
    """Whether the output holds nothing but values (or zeros) of the inputs, quantizers aside."""
    kind = name_of(node)
    if kind in {"pad", "constant_pad_nd"}:
        return is_pass(node)
    return kind in PASS or kind in {"cat", "concat", "index_select"}


def channels_along(labels: Tensor, axis: int) -> Tensor | None:
    """``(C,)`` source channel of each channel of a tensor, -1 for none; None where they are mixed.

    Args:
        labels: From ``labels_behind``.
        axis: Channel axis of that tensor.
    """
    # Zeros that were padded around a channel are part of it.
    rows, mixed = _only_label(labels.movedim(axis, 0).reshape(labels.shape[axis], -1), [1])
    return None if bool(mixed.any()) else rows[:, 0].clamp(min=0).long() - 1


def _constant(node: fx.Node) -> Tensor:
    """An index that the graph holds as a constant."""
    owner = node.graph.owning_module
    assert owner is not None
    values: Tensor = attribute(owner, str(node.target))
    return values.detach().cpu()


def _whole(size: Any) -> int:
    """A size as a number, for the batch of the example where it is symbolic."""
    return size if isinstance(size, int) else int(size.node.hint)
