"""Attention opened up: the fused operator replaced by matmul, softmax, matmul.

Only then can the operands of both products be quantized. `run_decompositions` leaves the fused
operator in place.
"""

import math
from typing import Any

import torch
from torch import fx

from emptyset.errors import CaptureError
from emptyset.graph.nodes import call
from emptyset.graph.operators import name_of

ATEN = torch.ops.aten


def open_attention(graph_module: fx.GraphModule) -> int:
    """Replace every ``scaled_dot_product_attention``, in place; gives how many there were.

        out = softmax(query * scale @ key^T + mask) @ value

    Raises:
        CaptureError: For dropout above 0 or grouped queries, which no eval-mode network here has.
    """
    graph, opened = graph_module.graph, 0
    for node in list(graph.nodes):
        if name_of(node) != "scaled_dot_product_attention":
            continue
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")
        given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        if given.get("dropout_p", 0.0) or given.get("enable_gqa") or given.get("is_causal"):
            raise CaptureError(
                f"{node.name}: attention with dropout, causal mask or grouped queries is not "
                "opened up. Put the network into eval mode, or pass the mask as a tensor."
            )
        with graph.inserting_before(node):
            node.replace_all_uses_with(_attention(graph, node, given))
        graph.erase_node(node)
        opened += 1
    return opened


def _attention(graph: fx.Graph, node: fx.Node, given: dict[str, Any]) -> fx.Node:
    query, key, value = (given[name] for name in ("query", "key", "value"))
    scale = given.get("scale")
    if scale is None:
        scale = 1 / math.sqrt(query.meta["val"].shape[-1])

    def insert(target: Any, *arguments: Any) -> fx.Node:
        return call(graph, target, arguments, node)

    turned = insert(ATEN.transpose.int, key, -2, -1)
    scores = insert(ATEN.matmul.default, query, turned)
    # Scaled after the product, so that the product's operands are the layers' own outputs.
    scores = insert(ATEN.mul.Tensor, scores, float(scale))
    mask = given.get("attn_mask")
    if mask is not None:
        if mask.meta["val"].dtype == torch.bool:
            raise CaptureError(
                f"{node.name}: a boolean attention mask; pass it as float (0, -inf)."
            )
        scores = insert(ATEN.add.Tensor, scores, mask)
    weights = insert(ATEN.softmax.int, scores, -1)
    return insert(ATEN.matmul.default, weights, value)
