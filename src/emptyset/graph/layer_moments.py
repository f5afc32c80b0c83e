"""Mean and deviation of what layers compute, over images, for the float and the quantized network.

What corrects layers one after the other runs the quantized network once, not once per layer.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
def quantized_moments_in_turn(
    student: Student, layers: Sequence[fx.Node], batches: Iterable[Tensor]
) -> Iterator[tuple[fx.Node, Moments]]:
    """Moments of each layer's output in the quantized network, one layer after the other.

    Before the next one is asked for, the layer's weight, bias and grid may be changed: everything
    behind it sees that. Every node is run once, layers twice, on all images before the next node
    is: memory is that of a few activations of all images.

    Args:
        student: Calibrated.
        layers: Nodes of its program, in order of execution.
        batches: ``(N, C, H, W)`` each.

    Yields:
        Each layer with its moments.
    """
    if not layers:
        return
    flow = _Flow(student.program)
    for node in flow.order(layers[-1]):
        if node.op == "placeholder":
            flow.known[node] = [images.to(student.device) for images in batches]
            continue
        flow.run(node)
        if node in layers:
            sums = _Sums()
            for values in flow.known[node]:
                sums.add(values, channel_axis(node))
            yield node, sums.moments()
            flow.run(node)
        flow.forget_behind(node)


class _Flow:
    """A program run node by node, on several batches at once.

    Attributes:
        known: What a node that depends on the images gave for each batch.
    """

    def __init__(self, program: fx.GraphModule) -> None:
        self.known: dict[fx.Node, list[Any]] = {}
        self._interpreter = fx.Interpreter(program)
        depend: dict[fx.Node, None] = {}
        for node in program.graph.nodes:
            if node.op == "placeholder" or any(n in depend for n in node.all_input_nodes):
                depend[node] = None
        self._nodes = list(depend)
        self._last_reader = {n: node for node in self._nodes for n in node.all_input_nodes}

    def order(self, last: fx.Node) -> list[fx.Node]:
        """Nodes that depend on the images, up to ``last``."""
        return self._nodes[: self._nodes.index(last) + 1]

    def run(self, node: fx.Node) -> None:
        """The node on all batches, with everything that hangs on parameters alone made anew."""
        count = len(next(self.known[n] for n in node.all_input_nodes if n in self.known))
        fixed = {n: self._fixed(n) for n in node.all_input_nodes if n not in self.known}
        self.known[node] = [
            self._result(node, {n: self.known[n][k] if n in self.known else fixed[n]
                                for n in node.all_input_nodes})
            for k in range(count)
        ]  # fmt: skip

    def forget_behind(self, node: fx.Node) -> None:
        """Free what nobody reads after this node."""
        for read in node.all_input_nodes:
            if self._last_reader.get(read) is node:
                self.known.pop(read, None)

    def _fixed(self, node: fx.Node) -> Any:
        return self._result(node, {n: self._fixed(n) for n in node.all_input_nodes})

    def _result(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        arguments, options = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
        return getattr(self._interpreter, node.op)(node.target, arguments, options)
