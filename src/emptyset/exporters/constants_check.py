"""Compares a file's constants exactly with the simulation: weights, scales, biases, bounds."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx

from emptyset.exporters.integer_bias import IntegerBias
from emptyset.exporters.simulation import Simulation, is_dequantize, is_quantize
from emptyset.graph.operators import argument, attribute


def compare_constants(path: Path, simulation: Simulation) -> tuple[int, str | None]:
    """Number of constants compared, and the first that differs (None: all are equal).

    Every constant of the file must be one the simulation knows; the file's weight codes are
    evaluated as a runtime would (cast, zero point subtracted), whatever they are stored in.
    """
    from emptyset.exporters.file_layers import file_layers

    file = _File(path)
    layers = file_layers(file.graph, simulation)
    count = 0
    for node in simulation.program.graph.nodes:
        fault = None
        if is_dequantize(node):
            fault = _dequantize(file, simulation.program, node, layers)
        elif is_quantize(node):
            fault = _quantize(file, simulation.program, node)
        else:
            continue
        count += 1
        if fault:
            return count, f"{node.name}: {fault}"
    for name, bias in simulation.biases.items():
        count += 1
        fault = _bias(file, layers.get(name), bias)
        if fault:
            return count, f"{name}: {fault}"
    parts, fault = _equal_parts(file)
    count += parts
    if fault:
        return count, fault
    for name, value in file.constants():
        expected = _attribute(simulation.program, name)
        if expected is None or not expected.is_floating_point():
            continue
        count += 1
        if not np.array_equal(value, expected.detach().numpy()):
            return count, f"{name}: the file's values differ from the simulation's"
    return count, None


class _File:
    """The file's graph, with constants evaluated."""

    def __init__(self, path: Path) -> None:
        import onnx

        from emptyset.exporters.onnx_graph import OnnxGraph

        self.graph = OnnxGraph(onnx.load(path))
        self.producers = self.graph.producers()

    def constants(self) -> list[tuple[str, Any]]:
        return [(name, self.graph.array(name)) for name in self.graph.constants]

    def evaluate(self, name: str) -> Any:
        """Value of a constant expression of Cast and Sub, or None where it is computed."""
        if name in self.graph.constants:
            values = self.graph.array(name)
            return values if values.dtype.kind in "fiub" else values.astype(np.int32)
        node = self.producers.get(name)
        if node is None:
            return None
        inputs = [self.evaluate(n) for n in node.input]
        if any(value is None for value in inputs):
            return None
        if node.op_type == "Cast":
            from onnx import helper

            to = next(a.i for a in node.attribute if a.name == "to")
            return inputs[0].astype(helper.tensor_dtype_to_np_dtype(to))
        if node.op_type == "Sub":
            return inputs[0] - inputs[1]
        return None

    def zero_point(self, node: Any) -> Any:
        has = len(node.input) > 2 and node.input[2]
        return self.graph.array(node.input[2]).astype(np.int64) if has else 0


def _dequantize(
    file: _File, program: fx.GraphModule, node: fx.Node, layers: dict[str, Any]
) -> str | None:
    made = file.producers.get(node.name)
    codes_node: Any = node.args[0]
    constant = isinstance(codes_node, fx.Node) and codes_node.op == "get_attr"
    if made is None and constant and _per_channel(node):
        # A module called twice: the exporter stores equal weights once, under the first's name.
        readers = (layers.get(user.name) for user in node.users)
        made = next((file.producers.get(r.input[1]) for r in readers if r is not None), None)
    if made is None or made.op_type != "DequantizeLinear":
        # Reshaped copies and moved codes leave some of them without a reader; weights never.
        return (
            "the file does not dequantize this weight" if constant and _per_channel(node) else None
        )
    scale, zero_point = (_number(program, a) for a in node.args[1:3])
    if not np.array_equal(file.graph.array(made.input[1]), scale.astype(np.float32)):
        return f"the file's scale differs from the simulation's ({made.input[1]})"
    if not constant:
        same = np.array_equal(file.zero_point(made), zero_point)
        return None if same else "the file's zero point differs from the simulation's"
    stored = file.evaluate(made.input[0])
    if stored is None:
        return "the file computes this weight instead of storing it"
    theirs = stored.astype(np.int64) - _along(file.zero_point(made), stored.ndim, node)
    codes = attribute(program, str(codes_node.target)).numpy().astype(np.int64)
    ours = codes - _along(zero_point.astype(np.int64), codes.ndim, node)
    if theirs.size == ours.size:
        theirs = theirs.reshape(ours.shape)  # a 1x1 convolution may be stored as a linear
    if theirs.shape != ours.shape or not np.array_equal(theirs, ours):
        wrong = int((theirs != ours).sum()) if theirs.shape == ours.shape else ours.size
        return f"{wrong} of {ours.size} weight codes differ from the simulation's"
    return None


def _quantize(file: _File, program: fx.GraphModule, node: fx.Node) -> str | None:
    """Scale, zero point and upper bound of the quantizer that writes this value, if one does."""
    scale, zero_point, *wanted = (_number(program, a) for a in node.args[1:5])
    made, bottom, top = file.producers.get(node.name), 0, 255
    while made is not None and made.op_type in ("Clip", "Reshape", "Flatten", "Squeeze"):
        if made.op_type == "Clip":
            low, high = (int(file.graph.array(n)) for n in made.input[1:3])
            bottom, top = max(bottom, low), min(top, high)
        made = file.producers.get(made.input[0])
    if made is None or made.op_type != "QuantizeLinear":
        return None
    if (bottom, top) != tuple(int(code) for code in wanted):
        bounds = f"{int(wanted[0])}..{int(wanted[1])}"
        return f"the file's codes are clipped to {bottom}..{top}, not to {bounds}"
    if not np.array_equal(file.graph.array(made.input[1]), scale.astype(np.float32)):
        return "the file's scale differs from the simulation's"
    if not np.array_equal(file.zero_point(made), zero_point):
        return "the file's zero point differs from the simulation's"
    return None


def _equal_parts(file: _File) -> tuple[int, str | None]:
    """How many means are convolutions, and which has weights other than the code 1, step 1 / C."""
    from emptyset.exporters.onnx_means import EQUAL_PARTS

    nodes = [node for node in file.graph.nodes if node.output[0].startswith(EQUAL_PARTS)]
    for node in nodes:
        codes, step = (file.graph.array(name) for name in node.input[:2])
        equal = np.all(codes == 1) and np.all(step == np.float32(1 / codes.shape[1]))
        if not equal or np.any(file.zero_point(node)):
            return len(nodes), f"{node.output[0]}: this mean's weights are not all equal parts"
    return len(nodes), None


def _bias(file: _File, layer: Any, bias: IntegerBias) -> str | None:
    """The layer's own bias: int32 codes, scale, no zero point."""
    if layer is None:
        return "the file has no such layer"
    made = file.producers.get(layer.input[2]) if len(layer.input) > 2 else None
    if made is None or made.op_type != "DequantizeLinear":
        return "the file holds this layer's bias in another form than int32"
    if not np.array_equal(file.graph.array(made.input[0]), bias.codes.numpy()):
        return "the file's bias codes differ from the simulation's"
    if not np.array_equal(file.graph.array(made.input[1]), bias.scale.numpy()):
        return "the file's bias scale differs from the simulation's"
    if np.any(file.zero_point(made)):
        return "the file's bias has a zero point"
    return None


def _per_channel(node: fx.Node) -> bool:
    return "per_channel" in str(node.target)


def _along(values: Any, dims: int, node: fx.Node) -> Any:
    if not _per_channel(node) or np.ndim(values) == 0:
        return values
    shape = [1] * dims
    shape[int(argument(node, 3))] = -1
    return values.reshape(shape)


def _number(program: fx.GraphModule, value: Any) -> Any:
    if isinstance(value, fx.Node):
        return attribute(program, str(value.target)).detach().numpy()
    return np.asarray(value)


def _attribute(program: fx.GraphModule, path: str) -> torch.Tensor | None:
    try:
        found = attribute(program, path)
    except AttributeError:
        return None
    return found if isinstance(found, torch.Tensor) else None
