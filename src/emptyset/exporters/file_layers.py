"""Which layer of the file is which layer of the simulation."""

from collections.abc import Iterable
from typing import Any

from onnx import NodeProto
from torch import fx

from emptyset.exporters.onnx_graph import OnnxGraph
from emptyset.exporters.simulation import Simulation, is_dequantize
from emptyset.graph.operators import WEIGHTED, attribute, name_of

# Marks the two-dimensional twin of a value.
FLAT = "_flat__"
KINDS = ("Conv", "ConvTranspose", "Gemm")


def file_layers(graph: OnnxGraph, simulation: Simulation) -> dict[str, NodeProto]:
    """Convolutions and linears of the file by the name of the simulation's node.

    A layer is known by the dequantized weight it reads: the exporter calls the output of a
    transposed convolution otherwise and numbers those behind it anew. Among layers of one weight
    the output's name decides, then the order.
    """
    readers: dict[str, list[NodeProto]] = {}
    for layer in graph.nodes:
        if layer.op_type in KINDS:
            readers.setdefault(layer.input[1], []).append(layer)
    found: dict[str, NodeProto] = {}
    for nodes in _by_weight(simulation.program):
        weights = dict.fromkeys(str(node.args[1]) for node in nodes)
        left = [layer for weight in weights for layer in readers.get(weight, [])]
        named = {layer.output[0].split(FLAT)[0]: layer for layer in left}
        for node in nodes:
            if node.name in named:
                found[node.name] = named[node.name]
                left.remove(named[node.name])
        unnamed = [node for node in nodes if node.name not in found]
        found |= {node.name: layer for node, layer in zip(unnamed, left, strict=False)}
    return found


def _by_weight(program: fx.GraphModule) -> Iterable[list[fx.Node]]:
    """Layers with quantized weights, those of equal weights together.

    The exporter stores equal weights once, under the first's name.
    """
    found: dict[Any, list[fx.Node]] = {}
    for node in program.graph.nodes:
        weight = node.args[1] if name_of(node) in WEIGHTED else None
        if isinstance(weight, fx.Node) and is_dequantize(weight):
            values = tuple(_bytes(program, argument) for argument in weight.args)
            found.setdefault(values, []).append(node)
    return found.values()


def _bytes(program: fx.GraphModule, value: Any) -> Any:
    """A parameter's type, shape and content, or the number itself."""
    if not isinstance(value, fx.Node):
        return value
    array = attribute(program, str(value.target)).detach().numpy()
    return array.dtype.str, array.shape, array.tobytes()
