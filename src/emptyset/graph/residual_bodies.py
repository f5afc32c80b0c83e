"""Finds what residual units add to their input, and reads it beside the logits."""

from typing import Any

import torch
from torch import Tensor, fx

from emptyset.graph.moving_statistics import move_statistics
from emptyset.graph.operators import is_parameter, is_weighted, name_of
from emptyset.graph.products import put_products_in


def residual_bodies(program: fx.GraphModule) -> list[fx.Node]:
    """The deeper operand of every addition of two computed tensors, before its quantizers.

    The deeper one has more convolutions and linears behind it: the body, not the shortcut.
    """
    depth: dict[fx.Node, int] = {}
    found: list[fx.Node] = []
    for node in program.graph.nodes:
        before = max((depth[source] for source in node.all_input_nodes), default=0)
        depth[node] = before + int(is_weighted(node))
        if name_of(node) not in {"add", "add_"}:
            continue
        operands = [_unquantized(a) for a in node.args[:2] if isinstance(a, fx.Node)]
        if len(operands) < 2 or any(is_parameter(operand) for operand in operands):
            continue
        found.append(max(operands, key=lambda operand: depth[operand]))
    return list(dict.fromkeys(found))


def _unquantized(node: Any) -> fx.Node:
    while node.op == "call_module":
        node = node.args[0]
    assert isinstance(node, fx.Node)
    return node


class Tapped:
    """A program that also gives the tensors at some of its nodes; it shares all parameters.

    Args:
        program: Of one input.
        nodes: Of its graph.
        products: Precision of convolutions, linears and matrix products; all else is float32.
        moves_statistics: Whether frozen BatchNorm normalises by the batch and moves what it
            stored.
    """

    def __init__(
        self,
        program: fx.GraphModule,
        nodes: list[fx.Node],
        products: torch.dtype = torch.float32,
        *,
        moves_statistics: bool = False,
    ) -> None:
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        output: Any = graph.graph_copy(program.graph, copies)
        logits = output[0] if isinstance(output, tuple | list) else output
        graph.output((logits, [copies[node] for node in nodes]))
        if products != torch.float32:
            put_products_in(graph, products)
        if moves_statistics:
            move_statistics(graph)
        self._module = fx.GraphModule(program, graph)

    def __call__(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """``(N, K)`` logits of ``(N, C, H, W)`` images, and the tensors."""
        logits, tapped = self._module(images)
        return logits, tapped
