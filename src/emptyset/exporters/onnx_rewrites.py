"""What turns the exporter's graph into one that ONNX Runtime executes on integers, exactly.

Every rewriting leaves the computed values as they are; the certificate checks that.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from emptyset.exporters.file_layers import FLAT, file_layers
from emptyset.exporters.onnx_graph import OnnxGraph
from emptyset.exporters.simulation import Simulation, is_quantize
from emptyset.graph.operators import attribute
from emptyset.quantizers.codes import pack

DEQUANTIZE, QUANTIZE = "DequantizeLinear", "QuantizeLinear"
# Operators that only move values; their first input (every input for Concat) is the data.
MOVES = {
    "Reshape", "Transpose", "Slice", "MaxPool", "Concat", "Expand", "Flatten", "Squeeze",
    "Unsqueeze", "Gather", "Tile", "Pad", "DepthToSpace", "SpaceToDepth", "Identity", "GatherND",
}  # fmt: skip


@dataclass(frozen=True)
class WeightGrid:
    """Bits and zero points of one stored weight."""

    bits: int
    zero_point: np.ndarray[Any, Any]
    axis: int


def weight_grids(simulation: Simulation) -> dict[str, WeightGrid]:
    """The grid of every weight, by the name of the value it is dequantized to."""
    found = {}
    for node in simulation.program.graph.nodes:
        if "dequantize_per_channel" not in str(node.target):
            continue
        _, _, zero_point, axis, low, high = node.args[:6]
        values = attribute(simulation.program, str(zero_point.target)).numpy()
        found[node.name] = WeightGrid((high - low).bit_length(), values, axis)
    return found


def code_bounds(simulation: Simulation) -> dict[str, tuple[int, int]]:
    """Smallest and largest code of every quantized activation, by value name."""
    nodes = [node for node in simulation.program.graph.nodes if is_quantize(node)]
    return {node.name: (int(node.args[3]), int(node.args[4])) for node in nodes}


def linears_as_gemm(graph: OnnxGraph, simulation: Simulation) -> int:
    """``MatMul`` with a transposed weight, and the bias added behind it, becomes ``Gemm``.

    Only Gemm has an integer kernel that takes a bias. Leading axes are folded into one; the
    reshapes move codes.
    """
    shapes = shapes_of(simulation)
    changed = 0
    for matmul in [n for n in graph.nodes if n.op_type == "MatMul"]:
        transpose = graph.producer(matmul.input[1])
        if transpose is None or transpose.op_type != "Transpose":
            continue
        weight = graph.producer(transpose.input[0])
        if weight is None or weight.op_type != DEQUANTIZE or graph.array(weight.input[0]) is None:
            continue
        in_features = graph.array(weight.input[0]).shape[1]
        readers = graph.readers().get(matmul.output[0], [])
        last, bias = matmul, ""
        if len(readers) == 1 and readers[0].op_type == "Add":
            others = [n for n in readers[0].input if n != matmul.output[0]]
            if others and (array := graph.array(others[0])) is not None and array.ndim == 1:
                last, bias = readers[0], others[0]
        shape = shapes.get(last.output[0])
        # Only the batch is symbolic, wherever it stands: one axis that a reshape can work out.
        restored = [size if isinstance(size, int) else -1 for size in shape or ()]
        if not restored or restored.count(-1) > 1:
            continue
        source = _reshaped(graph, matmul.input[0], [-1, in_features])
        graph.nodes.remove(matmul)
        if last is not matmul:
            graph.nodes.remove(last)
        flat = graph.fresh(f"{last.output[0]}_flat")
        operands = [source, transpose.input[0], *([bias] if bias else [])]
        graph.add("Gemm", operands, flat, transB=1)
        _restore_shape(graph, flat, last.output[0], restored)
        changed += 1
    return changed


def convolutions_as_gemm(graph: OnnxGraph, simulation: Simulation) -> int:
    """A 1x1 convolution of one position that gives the logits becomes ``Gemm``.

    A convolution has an integer kernel only where its output is quantized; Gemm gives float too.
    """
    shapes = shapes_of(simulation)
    found: dict[str, list[NodeProto]] = {}
    for conv in graph.nodes:
        if conv.op_type == "Conv" and _gives_one_float(graph, conv, shapes):
            found.setdefault(conv.input[1], []).append(conv)
    # A weight is stored once: where another call reads a map of positions, all stay convolutions.
    readers = graph.readers()
    found = {name: convs for name, convs in found.items() if len(readers[name]) == len(convs)}
    for name, convs in found.items():
        weight = graph.producer(name)
        assert weight is not None
        codes = graph.array(weight.input[0])
        weight.input[0] = graph.fresh(weight.input[0])
        _store(graph, weight.input[0], TensorProto.INT8, codes[:, :, 0, 0])
        for conv in convs:
            shape, flat = shapes[conv.output[0]], graph.fresh(f"{conv.output[0]}_flat")
            inputs = _reshaped(graph, conv.input[0], [-1, codes.shape[1]])
            graph.nodes.remove(conv)
            graph.add("Gemm", [inputs, name, *conv.input[2:]], flat, transB=1)
            _restore_shape(graph, flat, conv.output[0], [-1, *shape[1:]])
    return sum(map(len, found.values()))


def _gives_one_float(graph: OnnxGraph, conv: NodeProto, shapes: dict[str, Any]) -> bool:
    """Whether a convolution with quantized weight has one position and no quantized output."""
    weight = graph.producer(conv.input[1])
    shape, source = shapes.get(conv.output[0]), shapes.get(conv.input[0])
    if weight is None or not weight.input:
        return False
    codes = graph.array(weight.input[0])
    if codes is None or shape is None or source is None or codes.shape[2:] != (1, 1):
        return False
    if tuple(source[1:]) != (codes.shape[1], 1, 1) or tuple(shape[2:]) != (1, 1):
        return False
    readers = graph.readers().get(conv.output[0], [])
    return not any(reader.op_type == QUANTIZE for reader in readers)


def shapes_of(simulation: Simulation) -> dict[str, Any]:
    """Shapes of all values by name; the number of images is symbolic."""
    return {
        node.name: node.meta["val"].shape
        for node in simulation.program.graph.nodes
        if isinstance(node.meta.get("val"), Tensor)
    }


def _reshaped(graph: OnnxGraph, name: str, shape: list[int]) -> str:
    """``name`` in another shape; where it is dequantized, the codes are reshaped."""
    target = graph.constant("shape", np.array(shape, np.int64))
    source = graph.producer(name)
    if source is None or source.op_type != DEQUANTIZE:
        return graph.add("Reshape", [name, target], graph.fresh(f"{name}_flat"))
    codes = graph.add("Reshape", [source.input[0], target], graph.fresh(f"{source.input[0]}_flat"))
    return graph.add(DEQUANTIZE, [codes, *source.input[1:]], graph.fresh(f"{name}_flat"))


def _restore_shape(graph: OnnxGraph, flat: str, name: str, shape: list[int]) -> None:
    """Give ``flat`` the shape and the name of the value it replaces, behind its quantizer."""
    target = graph.constant("shape", np.array(shape, np.int64))
    readers = graph.readers().get(name, [])
    if len(readers) == 1 and readers[0].op_type == QUANTIZE and name not in graph.outputs:
        quantize = readers[0]
        codes, quantize_output = graph.fresh(f"{quantize.output[0]}_flat"), quantize.output[0]
        graph.replace_input(quantize, name, flat)
        quantize.output[0] = codes
        graph.add("Reshape", [codes, target], quantize_output)
        return
    graph.add("Reshape", [flat, target], name)


def keep_softmax_exact(graph: OnnxGraph) -> int:
    """Keep ONNX Runtime from fusing a quantized softmax into its table-based kernel.

    That kernel (QLinearSoftmax) gives other codes than softmax does: on a Swin network nearly all
    of them. A ``LeakyRelu`` of slope 1, which changes nothing, stands in the way of the fusion.
    """
    kept = 0
    for node in [n for n in graph.nodes if n.op_type == "Softmax"]:
        source = graph.producer(node.input[0])
        if source is None or source.op_type != DEQUANTIZE:
            continue
        same = graph.fresh(f"{node.input[0]}_same")
        node.input[0] = graph.add("LeakyRelu", [node.input[0]], same, alpha=1.0)
        kept += 1
    return kept


def move_codes(graph: OnnxGraph) -> int:
    """Between a dequantize and a quantize of the same scale, move the codes themselves."""
    changed = 0
    for quantize in [n for n in graph.nodes if n.op_type == QUANTIZE]:
        made: dict[str, str] = {}
        codes = _codes_of(graph, quantize.input[0], quantize, made)
        if codes is None or codes not in made.values():
            continue
        output = quantize.output[0]
        graph.nodes.remove(quantize)
        node = graph.producer(codes)
        assert node is not None
        node.output[0] = output
        graph.rename_everywhere(codes, output)
        changed += 1
    graph.drop_dead()
    return changed


def _codes_of(graph: OnnxGraph, name: str, quantize: NodeProto, made: dict[str, str]) -> str | None:
    """Codes of a value on the quantizer's grid, moving nodes copied as needed; None: not so."""
    if name in made:
        return made[name]
    node = graph.producer(name)
    if node is None:
        return None
    if node.op_type == DEQUANTIZE:
        same = all(
            _same(graph, a, b) for a, b in zip(node.input[1:], quantize.input[1:], strict=True)
        )
        return node.input[0] if same else None
    if node.op_type not in MOVES or len(node.output) != 1:
        return None
    data = range(len(node.input)) if node.op_type == "Concat" else range(1)
    inputs = list(node.input)
    for position in data:
        codes = _codes_of(graph, inputs[position], quantize, made)
        if codes is None:
            return None
        inputs[position] = codes
    if node.op_type == "Pad":
        if len(inputs) > 2 and inputs[2] and float(graph.array(inputs[2]) or 0) != 0:
            return None
        zero = graph.array(quantize.input[2])
        inputs = [*inputs[:2], graph.constant("pad", zero), *inputs[3:]]
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.name = ""
    del copy.input[:], copy.output[:]
    copy.input.extend(inputs)
    output = graph.fresh(f"{name}_codes")
    copy.output.append(output)
    graph.nodes.append(copy)
    made[name] = output
    return output


def _same(graph: OnnxGraph, one: str, other: str) -> bool:
    if one == other:
        return True
    first, second = graph.array(one), graph.array(other)
    return first is not None and second is not None and bool(np.array_equal(first, second))


def store_weights(graph: OnnxGraph, simulation: Simulation) -> dict[str, int]:
    """Weights of 4 bits and less as INT4 or UINT4; zero points folded.

    Returns:
        Bits that one weight takes in the file, by the name of its dequantized value.
    """
    grids, stored = weight_grids(simulation), {}
    for node in [n for n in graph.nodes if n.op_type == DEQUANTIZE]:
        grid = grids.get(node.output[0])
        if grid is None:
            continue
        # The exporter stores equal constants once; each reader gets a copy of its own here.
        name = f"{node.output[0]}_codes"
        codes = graph.array(node.input[0]).astype(np.int32)
        affine = bool(np.any(grid.zero_point))
        if grid.bits == 8 and affine:
            stored[node.output[0]] = 8
            continue
        stored[node.output[0]] = 4 if grid.bits <= 4 else 8
        _zero_point(graph, node, grid)
        zero = _along(grid.zero_point, codes.ndim, grid.axis).astype(np.int32)
        if grid.bits > 4:
            # code - zero point still fits a byte; kernels then see no weight zero point.
            _store(graph, name, TensorProto.INT8, codes - zero)
            node.input[0] = name
        elif affine:
            low = -(2 ** (grid.bits - 1))
            _store(graph, name, TensorProto.UINT4, codes - low)
            wide = graph.add("Cast", [name], f"{name}_32", to=TensorProto.INT32)
            moved = graph.add(
                "Sub", [wide, graph.constant(f"{name}_zero", zero - low)], f"{name}_0"
            )
            node.input[0] = graph.add("Cast", [moved], f"{name}_8", to=TensorProto.INT8)
        else:
            _store(graph, name, TensorProto.INT4, codes)
            node.input[0] = graph.add("Cast", [name], f"{name}_8", to=TensorProto.INT8)
    return stored


def _zero_point(graph: OnnxGraph, node: NodeProto, grid: WeightGrid) -> None:
    zeros = np.zeros(len(grid.zero_point), np.int8)
    while len(node.input) < 3:
        node.input.append("")
    node.input[2] = graph.constant("zero_point", zeros)


def _along(values: np.ndarray[Any, Any], dims: int, axis: int) -> np.ndarray[Any, Any]:
    shape = [1] * dims
    shape[axis] = -1
    return values.reshape(shape)


def _store(graph: OnnxGraph, name: str, kind: int, codes: np.ndarray[Any, Any]) -> None:
    """Store codes as raw bytes: one each, or two 4-bit codes to the byte."""
    if kind == TensorProto.INT8:
        graph.constants[name] = numpy_helper.from_array(codes.astype(np.int8), name)
        return
    packed = pack(torch.from_numpy(codes.astype(np.int16)), 4).numpy().tobytes()
    graph.constants[name] = helper.make_tensor(name, kind, codes.shape, packed, raw=True)


def store_biases(graph: OnnxGraph, simulation: Simulation) -> int:
    """Biases as int32 with scale and explicit zero points, through DequantizeLinear."""
    layers = file_layers(graph, simulation)
    for value, bias in simulation.biases.items():
        stem = f"{value}_bias"
        integer = graph.constant(f"{stem}_codes", bias.codes.numpy().astype(np.int32))
        step = graph.constant(f"{stem}_step", bias.scale.numpy())
        zero = graph.constant(f"{stem}_zero", np.zeros(len(bias.codes), np.int32))
        layer = layers[value]
        del layer.input[2:]  # the exporter leaves out a bias of zeros
        layer.input.append(graph.add(DEQUANTIZE, [integer, step, zero], stem, axis=0))
    return len(simulation.biases)


def clip_codes(graph: OnnxGraph, simulation: Simulation) -> int:
    """Below 8 bits, or behind a clip: ``QuantizeLinear`` to uint8, then ``Clip`` of the codes."""
    bounds, clipped = code_bounds(simulation), 0
    for node in [n for n in graph.nodes if n.op_type == QUANTIZE]:
        name = node.output[0]
        bottom, top = bounds[name.split(FLAT)[0].split("__pool")[0]]
        if (bottom, top) == (0, 255):
            continue
        wide = graph.fresh(f"{name}_wide")
        node.output[0] = wide
        low = graph.constant("low", np.array(bottom, np.uint8))
        high = graph.constant("high", np.array(top, np.uint8))
        graph.add("Clip", [wide, low, high], name)
        clipped += 1
    return clipped
