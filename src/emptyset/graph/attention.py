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
from emptyset.graph.operators import attribute, name_of

ATEN = torch.ops.aten


def open_attention(graph_module: fx.GraphModule) -> int:
    """Replace every ``scaled_dot_product_attention``, in place; gives how many there were.

        out = softmax(query * scale @ key^T + mask) @ value

    A boolean mask takes the scores out where it is false; one that never is goes.

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
                "opened up. Put the network into eval mode, or pass the mask as a boolean tensor."
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
    if mask is not None and mask.meta["val"].dtype != torch.bool:
        scores = insert(ATEN.add.Tensor, scores, mask)
    elif mask is not None and not _always_true(mask):
        # No sum: its operands would be quantized, and -inf has no code.
        scores = insert(ATEN.where.ScalarOther, mask, scores, -math.inf)
    weights = insert(ATEN.softmax.int, scores, -1)
    return insert(ATEN.matmul.default, weights, value)


def _always_true(mask: fx.Node) -> bool:
    """Whether a mask holds for every image, however many there are."""
    values = (_constant(mask, images) for images in (1, 64))
    return all(value is not None and bool(value.all()) for value in values)


def _constant(wanted: fx.Node, images: int) -> Any:
    """What a node gives for this many images, or None where it depends on what they show."""
    needed: set[fx.Node] = set()
    waiting = [wanted]
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += [] if name_of(node) == "sym_size" else node.all_input_nodes
    values: dict[fx.Node, Any] = {}
    for node in wanted.graph.nodes:
        if node not in needed:
            continue
        if node.op == "get_attr":
            assert node.graph.owning_module is not None
            values[node] = attribute(node.graph.owning_module, str(node.target))
        elif name_of(node) == "sym_size":
            source, size = node.args[0], node.meta["val"]
            of_images = isinstance(source, fx.Node) and source.op == "placeholder"
            if not isinstance(size, int) and not of_images:
                return None
            values[node] = size if isinstance(size, int) else images
        elif not isinstance(node.target, torch._ops.OpOverload) or _is_random(node.target):
            return None
        else:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            with torch.no_grad():
                values[node] = node.target(*args, **kwargs)
    return values[wanted]


def _is_random(target: torch._ops.OpOverload) -> bool:
    return torch.Tag.nondeterministic_seeded in target.tags
