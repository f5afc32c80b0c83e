"""Products with a parameter are layers, however the network writes them.

A runtime that finds a float weight between quantized values may quantize it by a rule of its own
(ONNX Runtime does for ``addmm`` and ``conv_transpose1d``), so the file would not compute what was
simulated. As layers they have weights that a plan quantizes.
"""

from typing import Any, TypeGuard

import torch
from torch import fx

from emptyset.graph.computed_weights import LAYER
from emptyset.graph.nodes import call
from emptyset.graph.operators import argument, is_parameter, name_of

ATEN = torch.ops.aten


def disguised_layers(graph_module: fx.GraphModule) -> int:
    """Write ``x @ W``, ``addmm`` and one-dimensional transposed convolutions as plain layers.

    The weight's new shape is computed from the parameter; `computed_weights` makes it one.

    Returns:
        How many there were.
    """
    graph, changed = graph_module.graph, 0
    for node in list(graph.nodes):
        kind = name_of(node)
        if kind not in _REWRITTEN:
            continue
        with graph.inserting_before(node):
            new = _REWRITTEN[kind](node)
        if new is None:
            continue
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        changed += 1
    return changed


def _product(node: fx.Node) -> fx.Node | None:
    """``x @ W`` with W ``(in, out)``."""
    x, weight = node.args[:2]
    if is_parameter(x) or not _is_matrix(weight):
        return None
    turned = call(node.graph, ATEN.t.default, (weight,), node)
    return _linear(node, weight, (x, turned))


def _product_and_sum(node: fx.Node) -> fx.Node | None:
    """``addmm(b, x, W)``: ``beta b + alpha x @ W``, b ``(out,)`` or one number for all outputs."""
    bias, x, weight = node.args[:3]
    if is_parameter(x) or not _is_matrix(weight) or not is_parameter(bias):
        return None
    if bias.meta["val"].dim() > 1:
        return None  # of images or positions
    graph, outputs = node.graph, weight.meta["val"].shape[1]
    turned = call(graph, ATEN.t.default, (weight,), node)
    scaled = [
        call(graph, ATEN.mul.Tensor, (value, node.kwargs.get(name, 1)), node)
        for value, name in ((turned, "alpha"), (bias, "beta"))
    ]
    each = call(graph, ATEN.expand.default, (scaled[1], [outputs]), node)
    return _linear(node, weight, (x, scaled[0], each))


def _linear(node: fx.Node, weight: fx.Node, operands: tuple[Any, ...]) -> fx.Node:
    """The layer, called after the parameter: a module may multiply by several."""
    made = call(node.graph, ATEN.linear.default, operands, node)
    made.meta[LAYER] = str(weight.target).removesuffix(".weight")
    return made


def _is_matrix(value: Any) -> TypeGuard[fx.Node]:
    return is_parameter(value) and value.meta["val"].dim() == 2


def _transposed_convolution(node: fx.Node) -> fx.Node | None:
    """One of a row of positions is one of a map of one row."""
    x, weight = node.args[:2]
    if not is_parameter(weight):
        return None
    graph = node.graph
    stride, padding, more, dilation = (
        _row(argument(node, place), empty) for place, empty in ((3, 1), (4, 0), (5, 0), (7, 1))
    )
    row = call(graph, ATEN.unsqueeze.default, (x, 2), node)
    kernel = call(graph, ATEN.unsqueeze.default, (weight, 2), node)
    operands = (row, kernel, argument(node, 2), stride, padding, more, argument(node, 6) or 1)
    made = call(graph, ATEN.conv_transpose2d.input, (*operands, dilation), node)
    return call(graph, ATEN.squeeze.dim, (made, 2), node)


def _row(size: Any, empty: int) -> list[int]:
    """What a number along the row is on a map of one row."""
    along = size[0] if isinstance(size, list | tuple) and size else size or empty
    return [empty, along]


_REWRITTEN = {
    "matmul": _product,
    "mm": _product,
    "addmm": _product_and_sum,
    "conv_transpose1d": _transposed_convolution,
}
