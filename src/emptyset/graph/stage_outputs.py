"""Finds where a network's stages end: the last block's output at each size of feature map."""

from typing import Any

from torch import Tensor, fx

from emptyset.graph.blocks import find_blocks
from emptyset.graph.operators import is_average, is_weighted
from emptyset.graph.student import Student


def stage_outputs(student: Student, *, most_positions: int) -> list[fx.Node]:
    """The output of the last block at each height and width, as the next block reads it, in order.

    A ResNet for CIFAR has three: 32 x 32, 16 x 16, 8 x 8.

    Args:
        student: A prepared student.
        most_positions: Stages whose maps have more pixels are left out.

    Returns:
        Nodes of the student's program with maps of more than one pixel; perhaps none.
    """
    nodes = {node.name: node for node in student.program.graph.nodes}
    last: dict[tuple[int, ...], fx.Node] = {}
    for block in find_blocks(student):
        (output,) = (node for node in block.module.graph.nodes if node.op == "output")
        # A block is copied from the program with the names of its nodes.
        found = _map_before(nodes[output.args[0].name])
        if found is not None and found[1][0] * found[1][1] <= most_positions:
            last[found[1]] = found[0]
    return list(last.values())


def _map_before(node: Any) -> tuple[fx.Node, tuple[int, ...]] | None:
    """The feature map that a block ends with, and its size; before pooling, where it is pooled."""
    while isinstance(node, fx.Node) and node.op != "placeholder":
        size = _size(node)
        if len(size) == 2 and size[0] * size[1] > 1 and not is_average(node):
            return node, size
        if is_weighted(node):
            return None
        node = node.args[0] if node.args else None
    return None


def _size(node: fx.Node) -> tuple[int, ...]:
    """Height and width of a feature map; empty for a tensor that is none."""
    source: Any = node
    while source.op == "call_module":
        source = source.args[0]
    value = source.meta.get("val")
    if not isinstance(value, Tensor) or value.dim() != 4:
        return ()
    return tuple(int(size) for size in value.shape[2:])
