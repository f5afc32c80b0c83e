"""What a plan leaves open: which layers follow the bits that are asked for; and their sizes."""

import glob
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from emptyset.bit_allocation.layers import Layer
from emptyset.graph.operators import PASS, layer_path, name_of, weighted_layers
from emptyset.graph.plans import LayerBits
from emptyset.graph.student import Student
from emptyset.quantizers.affine import AffineFakeQuantizer
from emptyset.quantizers.bits import SMALLEST, Bits


@dataclass(frozen=True)
class Freedom:
    """What the plan leaves open in one layer.

    Attributes:
        base: What the layer gets where nothing is said.
        weights: Whether its weights follow the bits that are asked for.
        inputs: Whether its input does.
    """

    base: LayerBits
    weights: bool
    inputs: bool


def freedoms(student: Student, probe: Student) -> dict[str, Freedom]:
    """What the plan leaves open, by layer path.

    Two students of one plan, asked for other bits: what follows the bits is free. So every plan can
    be used, and edges at 8 bits and the user's own overrides stay what they are.

    Args:
        student: At the bits of the run.
        probe: The same, with other bits of weights and of activations.
    """
    return {
        name: Freedom(
            bits,
            weights=bits.weights != probe.layer_bits[name].weights,
            inputs=bits.inputs != probe.layer_bits[name].inputs,
        )
        for name, bits in student.layer_bits.items()
    }


def probe_bits(bits: Bits) -> Bits:
    """Bits that differ in both widths, and from the 8 that plans give to edges."""
    weights, activations = (
        SMALLEST + 1 if width == SMALLEST else SMALLEST
        for width in (bits.weights, bits.activations)
    )
    return Bits(weights, activations)


def overrides_for(freedom: Mapping[str, Freedom], wanted: Bits) -> dict[str, str]:
    """Overrides that give every free layer these bits as far as its plan allows."""
    return {
        pattern(name): override(
            wanted.weights if free.weights else free.base.weights,
            wanted.activations if free.inputs else free.base.inputs,
            wanted.activations,
        )
        for name, free in freedom.items()
        if free.weights or free.inputs
    }


def override(weights: int, inputs: int | None, otherwise: int) -> str:
    """``w4a8``; an input that the plan leaves in float is written with bits that have no effect."""
    return str(Bits(weights, otherwise if inputs is None else inputs))


def pattern(name: str) -> str:
    """The pattern of ``plan.overrides`` that means exactly this path."""
    return glob.escape(name)


def sizes(student: Student) -> dict[str, Layer]:
    """Every layer once, in order of execution, with its weights and operations; without options.

    A weight that two operators read is one layer: its weights count once, its operations twice.
    """
    images = _images(student.program)
    found: dict[str, Layer] = {}
    shapes = {layer.name: layer.weight_shape for layer in student.layers()}
    for node in weighted_layers(student.program):
        name = layer_path(node)
        shape = shapes[name]
        positions = _values_per_image(node, images)
        macs = positions * math.prod(shape[1:])
        before = found[name].macs if name in found else 0
        found[name] = Layer(
            name, name_of(node), math.prod(shape), before + macs, free_weights=False
        )
    return found


def _images(program: fx.GraphModule) -> Any:
    """The batch size as an expression."""
    placeholder = next(node for node in program.graph.nodes if node.op == "placeholder")
    return _expression(placeholder.meta["val"].shape[0])


def _values_per_image(node: fx.Node, images: Any) -> int:
    """Values that the weight's first axis is multiplied out to, for one image.

    The outputs of a convolution or linear; the inputs of a transposed convolution, whose weight
    begins with the input channels.
    """
    counted: Any = node.args[0] if name_of(node) == "conv_transpose2d" else node
    while counted.op == "call_module":
        counted = counted.args[0]
    product: Any = 1
    for size in counted.meta["val"].shape:
        product = product * _expression(size)
    return int(product / images)


def _expression(size: Any) -> Any:
    return size if isinstance(size, int) else size.node.expr


def narrowed(student: Student) -> list[str]:
    """Layers whose input passes through fewer bits than the layer's own quantizer has."""
    found = []
    for node in weighted_layers(student.program):
        wanted = student.layer_bits[layer_path(node)].inputs
        source: Any = node.args[0]
        while isinstance(source, fx.Node) and (
            source.op == "call_module" or name_of(source) in PASS
        ):
            if source.op == "call_module" and wanted is not None:
                module = student.program.get_submodule(str(source.target))
                if isinstance(module, AffineFakeQuantizer) and module.bits < wanted:
                    found.append(layer_path(node))
                    break
            source = source.args[0]
    return found
