"""How much memory one image takes on its way through a student, read off the graph."""

import math
from typing import Any

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


def _bytes(node: fx.Node) -> int:
    """Bytes of the node's tensor for one image; 0 where it does not depend on the batch."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return 0
    shape: list[Any] = list(value.shape)
    if not shape or isinstance(shape[0], int):
        return 0
    return math.prod(int(size) for size in shape[1:]) * value.element_size()
