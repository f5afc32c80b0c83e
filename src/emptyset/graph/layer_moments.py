"""Mean and deviation of what layers compute, over images, for the float and the quantized network.

The quantized network is run only as far as the layer in question: what corrects layers one after
the other never waits for what comes behind.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from emptyset.graph.channel_labels import channel_axis
from emptyset.graph.residual_bodies import Tapped
from emptyset.graph.student import Student


@dataclass(frozen=True)
class Moments:
    """Of every output channel, over images and positions.

    Attributes:
        mean: ``(C,)`` double [units of the output].
        deviation: ``(C,)`` double, biased [units of the output].
    """

    mean: Tensor
    deviation: Tensor


class _Sums:
    """Running sums around the first batch's mean, so that nothing cancels."""

    def __init__(self) -> None:
        self._count = 0
        self._shift = self._first = self._second = torch.zeros(())

    def add(self, values: Tensor, axis: int) -> None:
        rows = values.detach().movedim(axis, 0).flatten(1).double()
        if not self._count:
            self._shift = rows.mean(dim=1, keepdim=True)
            self._first = self._second = torch.zeros_like(rows[:, 0])
        rows = rows - self._shift
        self._first = self._first + rows.sum(dim=1)
        self._second = self._second + rows.square().sum(dim=1)
        self._count += rows.shape[1]

    def moments(self) -> Moments:
        mean = self._first / self._count
        variance = (self._second / self._count - mean.square()).clamp(min=0.0)
        return Moments(self._shift[:, 0] + mean, variance.sqrt())


@torch.no_grad()
def float_moments(
    student: Student, layers: list[fx.Node], batches: Iterable[Tensor]
) -> dict[fx.Node, Moments]:
    """Moments of every layer's output in the float network, in one pass.

    Args:
        student: Prepared.
        layers: Nodes of its program.
        batches: ``(N, C, H, W)`` each.
    """
    network, sums = Tapped(student.program, layers), {layer: _Sums() for layer in layers}
    with student.float_mode():
        for images in batches:
            _, outputs = network(images.to(student.device))
            for layer, values in zip(layers, outputs, strict=True):
                sums[layer].add(values, channel_axis(layer))
    return {layer: one.moments() for layer, one in sums.items()}


@torch.no_grad()
def quantized_moments(student: Student, layer: fx.Node, batches: Iterable[Tensor]) -> Moments:
    """Moments of one layer's output in the quantized network, as it is now.

    Args:
        student: Calibrated.
        layer: Node of its program.
        batches: ``(N, C, H, W)`` each.
    """
    network, sums = _up_to(student.program, layer), _Sums()
    for images in batches:
        sums.add(network(images.to(student.device)), channel_axis(layer))
    return sums.moments()


def _up_to(program: fx.GraphModule, layer: fx.Node) -> fx.GraphModule:
    """The program that ends with this node; it shares all parameters and quantizers."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.graph_copy(program.graph, copies)
    graph.output(copies[layer])
    # What is behind the node has no reader left. (An unread input stays.)
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("output", "placeholder"):
            graph.erase_node(node)
    return fx.GraphModule(program, graph)
