"""Which axis of a unit's output holds channels: that of its last layer, followed to the end."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from emptyset.graph.operators import argument, is_matmul, is_weighted, name_of
from emptyset.reconstruction.image_axis import is_size, output_of, shape_of

# Values stay in their order; only the lengths of axes change.
_RESHAPES = {
    "view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze",
}  # fmt: skip
# Axes change places, or one of them goes.
_MOVES = {
    "permute", "transpose", "t", "movedim", "moveaxis", "swapaxes", "swapdims", "select",
}  # fmt: skip
_REDUCTIONS = {"mean", "sum", "amax", "amin", "logsumexp"}
# For this many images: how many does not matter to where an axis goes.
_IMAGES = 2


def channel_axis_of(body: fx.GraphModule) -> int:
    """Axis of the output that holds channels, not negative.

    A convolution gives channels second (last but its spatial axes), a linear last. From the last
    layer on the axis is followed through whatever moves it. Where it gets lost, it is where the
    last layer of all gives it.
    """
    found: dict[fx.Node, tuple[int, int]] = {}
    layers = 0
    for node in body.graph.nodes:
        shape = shape_of(node, _IMAGES)
        if node.op not in ("call_function", "call_module") or is_size(node) or shape is None:
            continue
        if is_weighted(node):
            layers += 1
            found[node] = (layers, _axis_of_layer(node, len(shape)))
            continue
        known = [
            (found[source][0], _followed(node, source, found[source][1]))
            for source in node.all_input_nodes
            if source in found
        ]
        kept = [(shape[axis] > 1, layer, axis) for layer, axis in known if axis is not None]
        if kept:
            # Of several that meet, that of the last layer; a factor of each position is none.
            found[node] = max(kept)[1:]
    output = output_of(body)
    if output in found:
        return found[output][1]
    last = [name_of(node) for node in body.graph.nodes if is_weighted(node)]
    rank = len(shape_of(output, _IMAGES) or ())
    return rank - 1 if last and last[-1] == "linear" and rank else 1


def _axis_of_layer(layer: fx.Node, rank: int) -> int:
    """``conv2d`` and ``conv_transpose2d`` end in two axes of positions, ``linear`` in none."""
    kind = name_of(layer)
    return rank - 1 if kind == "linear" else rank - 1 - int(kind[-2])


def _followed(node: fx.Node, source: fx.Node, axis: int) -> int | None:
    """Where an axis of what a node reads is in what it gives; None: nowhere."""
    before, after = (shape_of(one, _IMAGES) or () for one in (source, node))
    kind, rank = name_of(node), len(before)
    if kind in _RESHAPES:
        return _reshaped(before, after, axis)
    if kind in _MOVES:
        return _moved(node, before, axis)
    if kind in _REDUCTIONS:
        axes: Any = argument(node, 1)
        axes = [axes] if isinstance(axes, int) else axes or list(range(rank))
        return _without(axis, axes, rank, keep=len(after) == rank)
    # A product has rows of the first and columns of the second.
    if is_matmul(node) and axis == rank - (1 if source is node.args[0] else 2):
        return None
    # Everything else works in place, or aligned from the right.
    axis += len(after) - rank
    return axis if 0 <= axis < len(after) else None


def _reshaped(before: Sequence[int], after: Sequence[int], axis: int) -> int | None:
    """The axis whose entries lie as far apart; where it was merged, the one that it is part of."""
    apart = math.prod(before[axis + 1 :])
    strides = [math.prod(after[place + 1 :]) for place in range(len(after))]
    # Axes of one entry tell nothing, unless it is one.
    same = [place for place, stride in enumerate(strides) if stride == apart]
    same.sort(key=lambda place: (after[place] != before[axis], after[place] == 1))
    closer = [place for place, stride in enumerate(strides) if stride < apart]
    return next(iter(same + closer), None)


def _moved(node: fx.Node, before: Sequence[int], axis: int) -> int | None:
    """Where the operator itself puts an axis: it is known by its stride."""
    strides = [2**place for place in range(len(before))]
    target: Any = node.target
    moved = target(torch.empty_strided(before, strides, device="meta"), *node.args[1:])
    kept: tuple[int, ...] = moved.stride()
    return kept.index(strides[axis]) if strides[axis] in kept else None


def _without(axis: int, gone: Sequence[Any], rank: int, *, keep: bool) -> int | None:
    """Where an axis is when others are reduced."""
    places = {int(place) % rank for place in gone}
    if axis in places:
        return None
    return axis if keep else axis - sum(place < axis for place in places)
