"""Products of a graph in a coarser precision; everything else, the quantizers above all, stays."""

from typing import Any

import torch
from torch import Tensor, fx

from emptyset.graph.operators import is_matmul, is_weighted


def product_in(dtype: torch.dtype, target: Any, *args: Any, **kwargs: Any) -> Tensor:
    """What ``target`` gives of its tensors rounded to ``dtype``, as float32.

    A depthwise convolution stays as it is: it has so few products that rounding its tensors takes
    longer than what coarser products save.
    """
    if _is_depthwise(*args):
        whole: Tensor = target(*args, **kwargs)
        return whole
    cast = [a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
    out: Tensor = target(*cast, **kwargs)
    return out.float()


def _is_depthwise(x: Tensor, *others: Any) -> bool:
    """Whether a call reads every channel by itself; only convolutions say ``groups``, last but
    (transposed) one.
    """
    return len(others) > 5 and 1 < others[5] == x.shape[1]


def is_product(node: fx.Node) -> bool:
    """Whether a node is a convolution, a linear or a matrix product."""
    return is_weighted(node) or is_matmul(node)


def put_products_in(graph: fx.Graph, dtype: torch.dtype) -> dict[fx.Node, fx.Node]:
    """Let every product of a graph be in ``dtype``, in place.

    Returns:
        For each product that was there the node that gives it now.
    """
    replaced = {}
    for node in [node for node in graph.nodes if is_product(node)]:
        target: Any = node.target
        with graph.inserting_before(node):
            lower = graph.call_function(product_in, (dtype, target, *node.args), dict(node.kwargs))
        node.replace_all_uses_with(lower)
        graph.erase_node(node)
        replaced[node] = lower
    return replaced
