"""What is learnt at a time: a block, or one layer of it."""

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass

from torch import fx

from emptyset.graph.blocks import Block
from emptyset.graph.operators import is_clip, is_weighted, layer_path
from emptyset.graph.student import Student
from emptyset.quantizers.affine import AffineFakeQuantizer
from emptyset.reconstruction.image_axis import (
    between,
    gates,
    images_axis,
    input_of,
    output_of,
    stretch,
)
from emptyset.reconstruction.output_channels import channel_axis_of

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
        block: From ``blocks_by_image``.
        by_layer: Each layer by itself, from what it reads to the clip (and the quantizer) behind;
            from and to the nearest tensors that count images, where these do not, with the layers
            between them.
    """
    known = weight_paths(student).keys() - set(read_twice(student))
    owned = set(block.quantizers)
    if not (by_layer or block.is_long):
        weights, activations = _learnable(student, block.quantizers, known)
        axis = channel_axis_of(block.module)
        return [Unit(block.name, None, block.module, weights, activations, axis)]
    units = []
    targets = _quantizer_names(student)
    start, done = input_of(block.module), set[fx.Node]()
    for node in block.module.graph.nodes:
        if not is_weighted(node) or node in done:
            continue
        source, end = _reach(block.module, node)
        layers = [n for n in between(source, end) if is_weighted(n) and n not in done]
        done.update(layers)
        body = stretch(block.module, source, end)
        lead = None if source is start else stretch(block.module, start, source)
        inside = [targets[str(n.target)] for n in body.graph.nodes if str(n.target) in targets]
        inside = [name for name in dict.fromkeys(inside) if name in owned]
        owned -= set(inside)
        weights, activations = _learnable(student, inside, known)
        paths = [layer_path(layer) for layer in layers]
        name = paths[0] if len(paths) == 1 else f"{paths[0]} .. {paths[-1]}"
        units.append(Unit(name, lead, body, weights, activations, channel_axis_of(body)))
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


def _reach(block: fx.GraphModule, layer: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Where a layer's unit starts and ends: at tensors that count images."""
    source, end = _source(layer), _end(layer)
    if images_axis(source) is not None and images_axis(end) is not None:
        return source, end
    start, order = input_of(block), {node: place for place, node in enumerate(block.graph.nodes)}
    # What a layer makes of constants alone does not follow from the block's input.
    behind = (node for node in gates(end, output_of(block)) if gates(start, node))
    end = _end(next(node for node in behind if images_axis(node) is not None))
    before = (node for node in reversed(gates(start, end)) if order[node] <= order[source])
    tensors = (node for node in before if node.op != "call_module")
    return next(node for node in tensors if images_axis(node) is not None), end


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
