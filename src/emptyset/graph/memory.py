"""How much memory one image takes on its way through a student, read off the graph."""

import math

import torch
from torch import Tensor, fx

from emptyset.graph.student import Student

# Kernels keep a copy of what they read and write (layout changes, workspaces), and a fake quantizer
# gives a new tensor; seen with ResNet-18 and MobileNetV2 at 224 x 224.
COPIES = 3
BYTES_PER_GIGABYTE = 2**30


def bytes_per_image(student: Student) -> int:
    """Most bytes of activations that are alive at one moment of a forward, for one image."""
    nodes = list(student.program.graph.nodes)
    position = {node: i for i, node in enumerate(nodes)}
    dies: dict[int, list[fx.Node]] = {}
    for node in nodes:
        last = max((position[user] for user in node.users), default=position[node])
        dies.setdefault(last, []).append(node)
    alive = most = 0
    for i, node in enumerate(nodes):
        alive += _bytes(node)
        most = max(most, alive)
        alive -= sum(_bytes(done) for done in dies.get(i, []))
    return most * COPIES


def bytes_kept(graph: fx.Graph) -> int:
    """Bytes of every activation of one image together, which is what a backward keeps."""
    return sum(_bytes(node) for node in graph.nodes)


def largest_batch(student: Student, gigabytes: float, *, at_most: int) -> int:
    """Images in one forward that fit into ``gigabytes``, at least 1."""
    fits = int(gigabytes * BYTES_PER_GIGABYTE // max(bytes_per_image(student), 1))
    return max(1, min(at_most, fits))


def size_for(size: int | torch.SymInt, images: int) -> int:
    """A size of an exported tensor for so many images."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, images)))


def _bytes(node: fx.Node) -> int:
    """Bytes of the node's tensor for one image; 0 where it does not depend on the batch.

    The batch may be any axis, or a part of one: windows of attention come before their tokens.
    """
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or all(isinstance(size, int) for size in value.shape):
        return 0
    return math.prod(size_for(size, 1) for size in value.shape) * value.element_size()
