"""What is learnt at a time: a block, or one layer of it."""

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass

from torch import fx

from emptyset.graph.blocks import Block
from emptyset.graph.operators import is_clip, is_weighted, layer_path, name_of
from emptyset.graph.student import Student
from emptyset.quantizers.affine import AffineFakeQuantizer

# The image's range is that of its pixels; nothing is to be learnt about it.
INPUT = "input"


@dataclass(frozen=True)
class Unit:
    """A stretch of the student that is learnt by itself.

    Attributes:
        name: Module path of the block or layer.
        lead: From the block's input to the unit's; None where they are the same.
        body: From the unit's input to its output.
        weights: Names of the weight quantizers whose rounding it learns.
        activations: Names of the activation quantizers that belong to it.
        channel_axis: Axis of the output that holds channels.
    """

    name: str
    lead: fx.GraphModule | None
    body: fx.GraphModule
    weights: tuple[str, ...]
    activations: tuple[str, ...]
    channel_axis: int


def weight_paths(student: Student) -> dict[str, str]:
    """Path of the parameter that each weight quantizer reads, by the quantizer's name."""
    names = {id(quantizer): name for name, quantizer in student.quantizers.items()}
    found: dict[str, str] = {}
    for node in student.program.graph.nodes:
        if node.op != "call_module":
            continue
        source, quantizer = node.args[0], student.program.get_submodule(str(node.target))
        if not isinstance(quantizer, AffineFakeQuantizer) or quantizer.axis is None:
            continue
        if isinstance(source, fx.Node) and source.op == "get_attr":
            found[names[id(quantizer)]] = str(source.target)
    return found


def read_twice(student: Student) -> list[str]:
    """Weight quantizers whose parameter another one reads, too: a layer that is used twice.

    Their rounding is not learnt: what one learnt would be wrong for the grid of the other.
    """
    paths = weight_paths(student)
    counts = Counter(paths.values())
    return [name for name, path in paths.items() if counts[path] > 1]


def units_of(student: Student, block: Block, *, by_layer: bool) -> list[Unit]:
    """The block itself, or its layers in order where asked for or where it is too long.

    Args:
        student: Whose block it is.
        block: From ``find_blocks``.
        by_layer: Each layer by itself, from what it reads to the clip (and the quantizer) behind.
    """
    known = weight_paths(student).keys() - set(read_twice(student))
    owned = set(block.quantizers)
    if not (by_layer or block.is_long):
        weights, activations = _learnable(student, block.quantizers, known)
        axis = _channel_axis(block.module)
        return [Unit(block.name, None, block.module, weights, activations, axis)]
    units = []
    targets = _quantizer_names(student)
    for node in block.module.graph.nodes:
        if not is_weighted(node):
            continue
        source, end = _source(node), _end(node)
        body = _stretch(block.module, source, end)
        lead = None if source.op == "placeholder" else _stretch(block.module, None, source)
        inside = [targets[str(n.target)] for n in body.graph.nodes if str(n.target) in targets]
        inside = [name for name in dict.fromkeys(inside) if name in owned]
        owned -= set(inside)
        weights, activations = _learnable(student, inside, known)
        axis = _channel_axis(body)
        units.append(Unit(layer_path(node), lead, body, weights, activations, axis))
    return units


def _learnable(
    student: Student, names: Sequence[str], known: Set[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Weight and activation quantizers among these that can learn something."""
    weights = tuple(name for name in names if name in known)
    activations = tuple(
        name for name in names if student.quantizers[name].axis is None and name != INPUT
    )
    return weights, activations


def _quantizer_names(student: Student) -> dict[str, str]:
    return {
        target: module.name
        for target, module in student.program.named_modules(remove_duplicate=False)
        if isinstance(module, AffineFakeQuantizer)
    }


def _channel_axis(body: fx.GraphModule) -> int:
    """Channels come second behind a convolution, last behind a linear."""
    last = [name_of(node) for node in body.graph.nodes if is_weighted(node)]
    return -1 if last and last[-1] == "linear" else 1


def _source(layer: fx.Node) -> fx.Node:
    """What the layer reads, before its quantizers."""
    source = layer.args[0]
    while isinstance(source, fx.Node) and source.op == "call_module":
        source = source.args[0]
    assert isinstance(source, fx.Node)
    return source


def _end(layer: fx.Node) -> fx.Node:
    """The last of what belongs to the layer: its frozen BatchNorm, its clip, their quantizer."""
    end = layer
    while len(end.users) == 1 and _belongs(next(iter(end.users))):
        end = next(iter(end.users))
    return end


def _belongs(node: fx.Node) -> bool:
    frozen = bool(node.meta.get("frozen_batch_norm"))
    return node.op == "call_module" or is_clip(node) or frozen


def _stretch(module: fx.GraphModule, source: fx.Node | None, end: fx.Node) -> fx.GraphModule:
    """The part of a block between two of its nodes; parameters stay shared."""
    graph = fx.Graph()
    start = graph.placeholder("x")
    placeholder = next(n for n in module.graph.nodes if n.op == "placeholder")
    source = source or placeholder
    start.meta = dict(source.meta)
    copied: dict[fx.Node, fx.Node] = {source: start}
    needed, waiting = set(), [end]
    while waiting:
        node = waiting.pop()
        if node not in needed and node is not source:
            needed.add(node)
            waiting.extend(node.all_input_nodes)
    for node in module.graph.nodes:
        if node in needed:
            copied[node] = graph.node_copy(node, lambda n: copied[n])
    graph.output(copied[end])
    return fx.GraphModule(module, graph)
