"""Blocks of a student, found by cut points and not by class names.

A cut point is a node that all data flows through as one tensor. A block is the stretch between two
cut points that holds at least one weight; neighbours that belong to one module (``blocks.3.1``) are
merged. Residual, inverted-residual and transformer blocks all fall out of the same rule. The blocks
of a student share its parameters and quantizers; run one after the other they compute what the
student computes.
"""

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from emptyset.errors import CaptureError
from emptyset.graph.operators import AVERAGE, is_weighted, layer_path, name_of
from emptyset.graph.student import Student
from emptyset.quantizers.affine import AffineFakeQuantizer

LARGEST_BLOCK = 12


@dataclass(frozen=True)
class Block:
    """A stretch of the student from one tensor to one tensor.

    Attributes:
        name: Module path of the unit, or of its layers.
        module: Graph module of one input; parameters and quantizers are the student's own.
        layers: Paths of the convolutions and linears inside, in order.
        quantizers: Names of the quantizers that belong to it; one that two blocks read belongs to
            the earlier.
    """

    name: str
    module: fx.GraphModule
    layers: tuple[str, ...]
    quantizers: tuple[str, ...]

    @property
    def is_long(self) -> bool:
        """Whether it has more than 12 layers: too many to work on at once."""
        return len(self.layers) > LARGEST_BLOCK

    def __call__(self, x: Tensor) -> Tensor:
        """Output of the block for its input."""
        out: Tensor = self.module(x)
        return out


def find_blocks(student: Student) -> list[Block]:
    """The chain of blocks of a prepared student, in order.

    Raises:
        CaptureError: If a block's shapes cannot be computed from its own input.
    """
    flow = _Flow(student.program)
    pieces = _merge(flow, _pieces(flow))
    claimed: set[str] = set()
    blocks = []
    for first, last in pieces:
        inputs = flow.order[first - 1] if first else flow.placeholder
        module, names = flow.extract(inputs, flow.order[last])
        layers = tuple(layer_path(n) for n in flow.order[first : last + 1] if is_weighted(n))
        owned = tuple(n for n in names if n not in claimed)
        claimed |= set(owned)
        blocks.append(Block(_name(layers), module, layers, owned))
    return blocks


def _pieces(flow: "_Flow") -> list[tuple[int, int]]:
    """Stretches between cut points, each with at least one weight; positions, both inclusive."""
    cuts, pieces, first = flow.cuts(), [], 0
    holds = False
    for position in range(len(flow.order)):
        holds = holds or is_weighted(flow.order[position])
        last = position == len(flow.order) - 1
        if not last and not (holds and position in cuts):
            continue
        # Follow the cut on to the end of what belongs to it: clip and quantizer.
        if not last and position + 1 in cuts and not _starts_block(flow, position + 1):
            continue
        if holds:
            pieces.append((first, position))
        elif pieces:
            pieces[-1] = (pieces[-1][0], position)
        first, holds = position + 1, False
    return pieces


def _starts_block(flow: "_Flow", position: int) -> bool:
    """Whether what belongs to a cut ends before this node: at a layer, at a quantizer behind a
    quantizer, and at the mean over all positions before a layer.

    The mean belongs to the layer that reads it: a block that is learnt on what is left of its map
    has a number per channel where the published methods have one per pixel.
    """
    node = flow.order[position]
    if is_weighted(node) or flow.in_series(node):
        return True
    return _is_global_mean(node) and any(map(is_weighted, flow.order[position:]))


def _is_global_mean(node: fx.Node) -> bool:
    """Whether a node averages all positions of each channel: ``(N, C, ...)`` to ``(N, C)``."""
    if name_of(node) not in AVERAGE:
        return False
    source, given = node.args[0], _value(node).shape
    assert isinstance(source, fx.Node)
    return len(_value(source).shape) > 2 and all(size == 1 for size in given[2:])


def _merge(flow: "_Flow", pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join neighbours whose layers belong to one numbered module."""
    merged: list[tuple[int, int]] = []
    for piece in pieces:
        unit = _unit(flow, piece)
        if merged and unit is not None and unit == _unit(flow, merged[-1]):
            merged[-1] = (merged[-1][0], piece[1])
        else:
            merged.append(piece)
    return merged


def _unit(flow: "_Flow", piece: tuple[int, int]) -> str | None:
    """Path up to the last numbered module above every layer of the piece, or None."""
    paths = [layer_path(n) for n in flow.order[piece[0] : piece[1] + 1] if is_weighted(n)]
    units = {_numbered(path) for path in paths}
    return units.pop() if len(units) == 1 else None


def _numbered(path: str) -> str | None:
    parts = path.split(".")[:-1]
    while parts and not parts[-1].isdigit():
        parts.pop()
    return ".".join(parts) or None


def _name(layers: tuple[str, ...]) -> str:
    units = {_numbered(path) for path in layers}
    unit = units.pop() if len(units) == 1 else None
    if unit is not None:
        return unit
    return layers[0] if len(layers) == 1 else f"{layers[0]} .. {layers[-1]}"


class _Flow:
    """The nodes that data flows through, in order; what depends on parameters alone is left out."""

    def __init__(self, program: fx.GraphModule) -> None:
        self.program = program
        self.placeholder = next(n for n in program.graph.nodes if n.op == "placeholder")
        self.quantizer_names = {
            target: module.name
            for target, module in program.named_modules(remove_duplicate=False)
            if isinstance(module, AffineFakeQuantizer)
        }
        data = {self.placeholder}
        self.order: list[fx.Node] = []
        for node in program.graph.nodes:
            reads = any(source in data for source in node.all_input_nodes)
            if node.op in ("call_function", "call_module") and reads and not _is_size(node):
                data.add(node)
                self.order.append(node)
        self.data = data

    def in_series(self, node: fx.Node) -> bool:
        """Whether the node requantizes to fewer bits what another quantizer gave."""
        if node.op != "call_module":
            return False
        source = node.args[0]
        return isinstance(source, fx.Node) and source.op == "call_module"

    def cuts(self) -> set[int]:
        """Positions after which exactly one tensor is still read: the one just computed."""
        position = {node: i for i, node in enumerate(self.order)}
        last_read = {
            node: max(
                (position.get(u, len(self.order)) for u in node.users if not _is_size(u)), default=i
            )
            for node, i in position.items()
        }
        reach, found = -1, set()
        entry = max((position[u] for u in self.placeholder.users if u in position), default=-1)
        for i, node in enumerate(self.order):
            reach = max(reach, entry)
            if reach <= i and last_read[node] > i and _is_one_tensor(node):
                found.add(i)
            reach = max(reach, last_read[node])
        return found

    def extract(self, source: fx.Node, end: fx.Node) -> tuple[fx.GraphModule, list[str]]:
        """A graph module from ``source`` to ``end``, and the names of the quantizers inside."""
        graph = fx.Graph()
        start = graph.placeholder("x")
        start.meta = dict(source.meta)
        copied: dict[fx.Node, fx.Node] = {source: start}
        sizes = _Sizes(graph, source, start)
        names: list[str] = []

        def copy(node: fx.Node) -> Any:
            if node in copied:
                return copied[node]
            if _is_size(node):
                copied[node] = sizes.value(node)
                return copied[node]
            if node.op == "placeholder":
                raise CaptureError(f"block ending at {end.name}: the image is read in two blocks.")
            for needed in node.all_input_nodes:
                copy(needed)
            copied[node] = graph.node_copy(node, lambda n: copied[n])
            if node.op == "call_module" and str(node.target) in self.quantizer_names:
                name = self.quantizer_names[str(node.target)]
                names.extend([name] if name not in names else [])
            return copied[node]

        for node in self._needed(source, end):
            copy(node)
        graph.output(copied[end])
        return fx.GraphModule(self.program, graph), names

    def _needed(self, source: fx.Node, end: fx.Node) -> list[fx.Node]:
        """Data nodes between ``source`` and ``end``, in order of execution."""
        needed, waiting = set(), [end]
        while waiting:
            node = waiting.pop()
            if node in needed or node is source or node not in self.data:
                continue
            needed.add(node)
            waiting.extend(node.all_input_nodes)
        return [node for node in self.order if node in needed]


class _Sizes:
    """Shape integers of a block, computed from the block's own input."""

    def __init__(self, graph: fx.Graph, source: fx.Node, start: fx.Node) -> None:
        self._graph, self._start = graph, start
        self._shape = _value(source).shape
        self._known: dict[str, Any] = {}

    def value(self, node: fx.Node) -> Any:
        """A node or number for the integer that ``node`` stands for."""
        wanted = node.meta["val"]
        if isinstance(wanted, int):
            return wanted
        expression = str(wanted)
        if expression not in self._known:
            self._known[expression] = self._compute(wanted)
        return self._known[expression]

    def _compute(self, wanted: torch.SymInt) -> Any:
        for axis, size in enumerate(self._shape):
            if isinstance(size, int):
                continue
            ratio = wanted.node.expr / size.node.expr
            if not ratio.is_number:
                continue
            node = self._graph.call_function(torch.ops.aten.sym_size.int, (self._start, axis))
            numerator, denominator = int(ratio.p), int(ratio.q)
            if denominator != 1:
                node = self._graph.call_function(operator.floordiv, (node, denominator))
            if numerator != 1:
                node = self._graph.call_function(operator.mul, (node, numerator))
            return node
        raise CaptureError(f"The size {wanted} cannot be computed from a block's own input.")


def _value(node: fx.Node) -> Any:
    """Fake value of a node; a fake quantizer gives what it reads."""
    while "val" not in node.meta and node.op == "call_module":
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node = source
    return node.meta["val"]


def _is_one_tensor(node: fx.Node) -> bool:
    """Whether the node gives values; not several tensors, and no places of something."""
    value = _value(node)
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_size(node: fx.Node) -> bool:
    """Whether the node gives an integer of a shape."""
    if node.op != "call_function":
        return False
    return isinstance(node.meta.get("val"), (int, torch.SymInt))
