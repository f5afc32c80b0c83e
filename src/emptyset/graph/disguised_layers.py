"""Products with a parameter are layers, however the network writes them.

A runtime that finds a float weight between quantized values may quantize it by a rule of its own
(ONNX Runtime does for ``addmm`` and ``conv_transpose1d``), so the file would not compute what was
simulated. As layers they have weights that a plan quantizes.
"""

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx

from emptyset.graph.computed_weights import LAYER, values_without_images
from emptyset.graph.nodes import call, rewrite
from emptyset.graph.operators import argument, is_parameter

ATEN = torch.ops.aten
Constants = dict[fx.Node, Tensor]


def disguised_layers(graph_module: fx.GraphModule) -> int:
    """Write ``x @ W``, ``addmm`` and one-dimensional transposed convolutions as plain layers.

    W may be computed of parameters, too. Its new shape is; `computed_weights` makes it a parameter.

    Returns:
        How many there were.
    """
    constants = values_without_images(graph_module)

    def plainer(node: fx.Node) -> fx.Node | None:
        # Other overloads give what they computed in another precision.
        made = _REWRITTEN.get(node.target)
        return None if made is None or node in constants else made(node, constants)

    return rewrite(graph_module.graph, plainer)


def _product(node: fx.Node, constants: Constants) -> fx.Node | None:
    """``x @ W`` with W ``(in, out)``."""
    x, weight = node.args[:2]
    if x in constants or not _is_matrix(weight, constants):
        return None
    turned = call(node.graph, ATEN.t.default, (weight,), node)
    return _linear(node, weight, (x, turned))


def _product_and_sum(node: fx.Node, constants: Constants) -> fx.Node | None:
    """``addmm(b, x, W)``: ``beta b + alpha x @ W``, one b for each output or for all of them."""
    bias, x, weight = node.args[:3]
    if x in constants or not _is_matrix(weight, constants) or bias not in constants:
        return None
    assert isinstance(bias, fx.Node)
    graph, outputs, shape = node.graph, weight.meta["val"].shape[1], constants[bias].shape
    if len(shape) > 1 and shape[0] != 1:
        return None  # of images or positions
    turned = call(graph, ATEN.t.default, (weight,), node)
    scaled = [
        call(graph, ATEN.mul.Tensor, (value, node.kwargs.get(name, 1)), node)
        for value, name in ((turned, "alpha"), (bias, "beta"))
    ]
    row = call(graph, ATEN.reshape.default, (scaled[1], [-1]), node)
    each = call(graph, ATEN.expand.default, (row, [outputs]), node)
    return _linear(node, weight, (x, scaled[0], each))


def _linear(node: fx.Node, weight: fx.Node, operands: tuple[Any, ...]) -> fx.Node:
    """The layer, called after the parameter: a module may multiply by several."""
    made = call(node.graph, ATEN.linear.default, operands, node)
    if is_parameter(weight):
        made.meta[LAYER] = str(weight.target).removesuffix(".weight")
    return made


def _is_matrix(value: Any, constants: Constants) -> TypeGuard[fx.Node]:
    """Whether it is of parameters alone, and numbers that a plan can quantize."""
    found = constants.get(value) if isinstance(value, fx.Node) else None
    return found is not None and found.dim() == 2 and found.is_floating_point()


def _transposed_convolution(node: fx.Node, constants: Constants) -> fx.Node | None:
    """One of a row of positions is one of a map of one row."""
    x, weight = node.args[:2]
    found = constants.get(weight) if isinstance(weight, fx.Node) else None
    if x in constants or found is None or not found.is_floating_point():
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


_REWRITTEN: dict[Any, Callable[[fx.Node, Constants], fx.Node | None]] = {
    ATEN.matmul.default: _product,
    ATEN.mm.default: _product,
    ATEN.addmm.default: _product_and_sum,
    ATEN.conv_transpose1d.default: _transposed_convolution,
}
