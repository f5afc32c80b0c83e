"""Mean and deviation of what layers compute, over images, for the float and the quantized network.

What corrects layers one after the other runs the quantized network once, not once per layer: all
images go through a node before the next one runs. What does not fit into memory lies in files.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from emptyset.graph.channel_labels import channel_axis
from emptyset.graph.operators import behind_images
from emptyset.graph.room import MappedFile
from emptyset.graph.student import Student

# Values that are summed at once, as doubles.
_SUMMED = 1 << 22
_ALIGNMENT = 64


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
        others = [n for n in range(values.dim()) if n != axis % values.dim()]
        if not self._count:
            self._shift = values.mean(others, dtype=torch.double).unsqueeze(1)
            self._first = self._second = torch.zeros_like(self._shift[:, 0])
        for part in torch.split(values, max(1, _SUMMED * len(values) // values.numel())):
            rows = part.movedim(axis, 0).flatten(1).double() - self._shift
            self._first = self._first + rows.sum(dim=1)
            self._second = self._second + rows.square().sum(dim=1)
            self._count += rows.shape[1]

    def moments(self) -> Moments:
        mean = self._first / self._count
        variance = (self._second / self._count - mean.square()).clamp(min=0.0)
        return Moments(self._shift[:, 0] + mean, variance.sqrt())


def layers_of_images(program: fx.GraphModule, layers: Sequence[fx.Node]) -> list[fx.Node]:
    """Those layers that read something of the images.

    What another one gives (of learnt queries, say) is the same for all images and has no moments.
    """
    reached = set(behind_images(program))
    return [layer for layer in layers if layer in reached]


@torch.no_grad()
def float_moments(
    student: Student, layers: list[fx.Node], batches: Iterable[Tensor]
) -> dict[fx.Node, Moments]:
    """Moments of every layer's output in the float network, in one pass.

    Args:
        student: Prepared.
        layers: From ``layers_of_images``.
        batches: ``(N, C, H, W)`` each.
    """
    sums = {layer: _Sums() for layer in layers}
    with student.float_mode():
        for images in batches:
            flow = _Flow(student.program, [images.to(student.device)], None)
            for node in flow.order(layers):
                (values,) = flow.results(node)
                if node in sums:
                    sums[node].add(values, channel_axis(node))
                flow.keep(node, [values])
    return {layer: one.moments() for layer, one in sums.items()}


@torch.no_grad()
def quantized_moments_in_turn(
    student: Student,
    layers: Sequence[fx.Node],
    batches: Iterable[Tensor],
    *,
    limit: int | None = None,
) -> Iterator[tuple[fx.Node, Moments]]:
    """Moments of each layer's output in the quantized network, one layer after the other.

    Before the next one is asked for, the layer's weight, bias and grid may be changed: everything
    behind it sees that. Every node is run once, layers twice, on all images before the next node
    is: what is held is a few activations of all images.

    Args:
        student: Calibrated.
        layers: From ``layers_of_images``, in order of execution.
        batches: ``(N, C, H, W)`` each, none larger than the first.
        limit: Bytes of activations that may be in memory between two nodes; what is more lies in
            files, and the moments are the same to the last bit. None: all.

    Yields:
        Each layer with its moments.

    Raises:
        RunFolderError: If the disk has no room.
    """
    flow = _Flow(student.program, [images.to(student.device) for images in batches], limit)
    nodes = flow.order(layers)
    for node in nodes:
        if node in layers:
            sums = _Sums()
            for values in flow.results(node):
                sums.add(values, channel_axis(node))
            yield node, sums.moments()
        if node is not nodes[-1]:
            flow.keep(node, flow.results(node))


class _Flow:
    """A program run node by node, on several batches at once."""

    def __init__(self, program: fx.GraphModule, batches: list[Tensor], limit: int | None) -> None:
        self._interpreter, self._count = fx.Interpreter(program), len(batches)
        self._room = _Room(limit)
        image, *self._nodes = behind_images(program)
        # What the nodes that depend on the images gave. Whoever gave the images holds them anyway.
        self._known: dict[fx.Node, _Kept] = {image: _Kept(_Room(None), batches)}
        self._last_reader = {n: node for node in self._nodes for n in node.all_input_nodes}

    def order(self, layers: Sequence[fx.Node]) -> list[fx.Node]:
        """Nodes that depend on the images, up to the last of these."""
        ends = [n for n, node in enumerate(self._nodes, start=1) if node in layers]
        return self._nodes[: max(ends, default=0)]

    def results(self, node: fx.Node) -> Iterator[Any]:
        """What the node gives for each batch; what hangs on parameters alone is made anew."""
        sources = node.all_input_nodes
        fixed = {n: self._fixed(n) for n in sources if n not in self._known}
        for k in range(self._count):
            known = {n: self._known[n][k] for n in sources if n in self._known}
            yield self._result(node, fixed | known)

    def keep(self, node: fx.Node, results: Iterable[Any]) -> None:
        """Hold what the node gave as long as it is read; free what nobody reads after it."""
        sources = [n for n in node.all_input_nodes if n in self._known]
        done = [n for n in sources if self._last_reader[n] is node]
        kept = _Kept(self._room, [None] * self._count)
        for k, value in enumerate(results):
            for read in done:
                self._known[read][k] = None
            if node in self._last_reader:
                kept[k] = value
        self._known[node] = kept
        for read in done:
            del self._known[read]

    def _fixed(self, node: fx.Node) -> Any:
        return self._result(node, {n: self._fixed(n) for n in node.all_input_nodes})

    def _result(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        arguments, options = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
        return getattr(self._interpreter, node.op)(node.target, arguments, options)


class _Room:
    """How many bytes may be held, and how many are."""

    def __init__(self, limit: int | None) -> None:
        self._limit, self._held = limit, 0

    def take(self, size: int) -> bool:
        """Take so many bytes, if they are left."""
        if self._limit is not None and self._held + size > self._limit:
            return False
        self._held += size
        return True

    def give_back(self, size: int) -> None:
        """So many bytes are free again."""
        self._held -= size


class _Filed(NamedTuple):
    """A tensor that lies in a file, and where it is used."""

    stored: Tensor
    device: torch.device


class _Kept:
    """What one node gave for each batch, in memory or in one file for all that does not fit."""

    def __init__(self, room: _Room, values: Sequence[Any]) -> None:
        self._room, self._count = room, len(values)
        self._values: list[Any] = [None] * self._count
        self._file: MappedFile | None = None
        self._slot = 0
        for k, value in enumerate(values):
            self[k] = value

    def __getitem__(self, k: int) -> Any:
        """The value of batch ``k``, where it was computed."""
        value = self._values[k]
        if not isinstance(value, _Filed):
            return value
        self._touch(value.stored)
        return value.stored.to(value.device)

    def __setitem__(self, k: int, value: Any) -> None:
        """Hold this value instead; None: nothing."""
        before = self._values[k]
        if isinstance(before, Tensor):
            self._room.give_back(before.nbytes)
        self._values[k] = value
        if isinstance(value, Tensor) and not self._room.take(value.nbytes):
            stored = self._in_file(k, value)
            stored.copy_(value)
            self._touch(stored)
            self._values[k] = _Filed(stored, value.device)

    def _in_file(self, k: int, value: Tensor) -> Tensor:
        """A place of its own for it, laid out as it is: kernels choose their way by the layout."""
        if self._file is None:
            self._slot = -(-value.nbytes // _ALIGNMENT) * _ALIGNMENT
            self._file = MappedFile(self._slot * self._count)
        assert value.nbytes <= self._slot
        stride = torch.empty_like(value, device="meta").stride()
        place = self._file.tensor((value.numel(),), value.dtype, self._slot * k)
        return place.as_strided(value.shape, stride)

    def _touch(self, stored: Tensor) -> None:
        assert self._file is not None
        self._file.touched(stored.nbytes)
