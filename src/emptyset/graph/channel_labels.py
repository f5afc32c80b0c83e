"""Which channel of an earlier tensor each value of a later one comes from.

Reshapes, pads, slices, concatenations and pools only move values. A tensor that holds its own
channel numbers is sent through the very operator, and what comes out tells where every value came
from. No operator needs a rule of its own, so `channel_shuffle` written as view, transpose, view is
followed like any other.
"""

from typing import Any

import torch
from torch import Tensor, fx

from emptyset.graph.operators import AVERAGE, PASS, attribute, is_pass, name_of

# Average or select within a channel of (N, C, H, W), whatever the padding.
POOLS = {
    "avg_pool2d", "adaptive_avg_pool2d", "max_pool2d", "adaptive_max_pool2d", "upsample_nearest2d",
    "upsample_bilinear2d", "upsample_bicubic2d",
}  # fmt: skip
NOTHING = -1


def channel_axis(node: fx.Node) -> int:
    """Axis of the channels: the second of images and features, the last of token sequences."""
    return 1 if len(shape_of(node)) in (2, 4) else -1


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


def own_labels(node: fx.Node) -> Tensor:
    """A tensor like the node's, every value the number of its channel counted from 1."""
    shape, axis = shape_of(node), channel_axis(node)
    around = [1] * len(shape)
    around[axis] = shape[axis]
    numbers = torch.arange(1, shape[axis] + 1, dtype=torch.float32)
    return numbers.view(around).expand(shape)


def labels_behind(node: fx.Node, labels: dict[fx.Node, Tensor]) -> Tensor | None:
    """Labels of a node's output from those of its inputs; None: it does more than move values.

    Args:
        node: An operator that reads at least one labelled tensor.
        labels: By node; 0 stands for a value that comes from none of the labelled channels.
    """
    if node.op == "call_module":
        source = node.args[0]
        assert isinstance(source, fx.Node)
        return labels[source]
    if name_of(node) in POOLS:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        return labels[source].amax(dim=(-2, -1), keepdim=True).expand(shape_of(node))
    if not moves_values(node) and name_of(node) not in AVERAGE:
        return None

    def concrete(value: fx.Node) -> Any:
        if value in labels:
            return labels[value]
        found = value_of(value)
        if not isinstance(found, Tensor):
            return _whole(found)
        return torch.zeros(shape_of(value)) if found.is_floating_point() else _constant(value)

    arguments: Any = fx.node.map_arg(node.args, concrete)
    named: Any = fx.node.map_arg(node.kwargs, concrete)
    # Rounded: the mean of equal labels may be off by a rounding error.
    moved: Tensor = node.target(*arguments, **named).round()  # type: ignore[operator]
    return moved


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
    rows = labels.movedim(axis, 0).reshape(labels.shape[axis], -1)
    first, last = rows.aminmax(dim=1)
    # Zeros that were padded around a channel are part of it.
    inner = rows.where(rows > 0, torch.inf).amin(dim=1).clamp(max=2.0**24)
    mixed = (first != last) & ~((first == 0) & (inner == last))
    return None if bool(mixed.any()) else last.long() - 1


def _constant(node: fx.Node) -> Tensor:
    """An index that the graph holds as a constant."""
    owner = node.graph.owning_module
    assert owner is not None
    values: Tensor = attribute(owner, str(node.target))
    return values.detach().cpu()


def _whole(size: Any) -> int:
    """A size as a number, for the batch of the example where it is symbolic."""
    return size if isinstance(size, int) else int(size.node.hint)
