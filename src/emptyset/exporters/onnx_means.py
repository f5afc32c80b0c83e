"""Means of quantized tensors on integer kernels: global pools, and convolutions of equal weights.

ONNX Runtime has an integer kernel for a global pool and none for any other mean. In float a sum's
last bits depend on its order, and where a mean of few codes lies on a rounding boundary they decide
the code: an integer sum has no order.
"""

from typing import Any

import numpy as np
from onnx import NodeProto

from emptyset.exporters.onnx_graph import OnnxGraph
from emptyset.exporters.onnx_rewrites import DEQUANTIZE, QUANTIZE, shapes_of
from emptyset.exporters.simulation import Simulation

# The weight of a mean over channels.
EQUAL_PARTS = "equal_parts"


def means_on_integers(graph: OnnxGraph, simulation: Simulation) -> int:
    """Rewrite every mean between a dequantize and a quantize that has an integer form.

    Over all axes behind the channels: a global pool. Over height and width of a tensor with its
    channels last: the same of the transposed codes. Over channels (or tokens) alone: a convolution
    of one output whose weights are all the code 1 with the step ``1 / C``.

    Returns:
        How many there were.
    """
    shapes, changed = shapes_of(simulation), 0
    for mean in [n for n in graph.nodes if n.op_type == "ReduceMean"]:
        source, quantize = graph.producer(mean.input[0]), _only_quantize(graph, mean)
        shape = shapes.get(mean.input[0])
        axes = graph.array(mean.input[1]) if len(mean.input) > 1 else None
        quantized = source is not None and source.op_type == DEQUANTIZE
        if not quantized or quantize is None or shape is None or axes is None:
            continue
        over = sorted(int(axis) % len(shape) for axis in axes)
        new = _rewritten(graph, mean, over, shape)
        if new is None:
            continue
        graph.nodes.remove(mean)
        graph.replace_input(quantize, mean.output[0], new)
        _restore_shape(graph, mean, quantize, over, shape)
        changed += 1
    return changed


def _only_quantize(graph: OnnxGraph, mean: NodeProto) -> NodeProto | None:
    """The quantizer behind the mean, if nothing else reads it."""
    readers = graph.readers().get(mean.output[0], [])
    return readers[0] if len(readers) == 1 and readers[0].op_type == QUANTIZE else None


def _rewritten(graph: OnnxGraph, mean: NodeProto, over: list[int], shape: Any) -> str | None:
    """Name of the mean as a tensor of as many axes, its channels second."""
    rank, name = len(shape), graph.fresh(mean.output[0])
    if rank > 2 and over == list(range(2, rank)):
        return graph.add("GlobalAveragePool", [mean.input[0]], name)
    if rank == 4 and over == [1, 2] and isinstance(shape[3], int):
        return graph.add("GlobalAveragePool", [_channels_second(graph, mean.input[0])], name)
    if rank in (3, 4) and over == [1] and isinstance(shape[1], int):
        return graph.add("Conv", [mean.input[0], _ones(graph, shape[1], rank)], name)
    return None


def _channels_second(graph: OnnxGraph, name: str) -> str:
    """The dequantized tensor with its last axis second; the codes are transposed."""
    source = graph.producer(name)
    assert source is not None
    codes = graph.fresh(f"{source.input[0]}_second")
    graph.add("Transpose", [source.input[0]], codes, perm=[0, 3, 1, 2])
    return graph.add(DEQUANTIZE, [codes, *source.input[1:]], graph.fresh(f"{name}_second"))


def _ones(graph: OnnxGraph, channels: int, rank: int) -> str:
    """The dequantized weight ``(1, C, 1, ...)`` of a mean over channels."""
    codes = graph.constant("ones", np.ones((1, channels, *[1] * (rank - 2)), np.int8))
    step = graph.constant("one_part", np.array([1 / channels], np.float32))
    zero = graph.constant("no_offset", np.zeros(1, np.int8))
    return graph.add(DEQUANTIZE, [codes, step, zero], graph.fresh(EQUAL_PARTS), axis=0)


def _restore_shape(
    graph: OnnxGraph, mean: NodeProto, quantize: NodeProto, over: list[int], shape: Any
) -> None:
    """Give the codes the shape that the mean's have."""
    keep = next((a.i for a in mean.attribute if a.name == "keepdims"), 1)
    first_moved = over == [1, 2]
    if keep and not first_moved:
        return
    name = quantize.output[0]
    quantize.output[0] = f"{name}__pool"
    if keep:
        target = graph.constant("shape", np.array([-1, 1, 1, shape[3]], np.int64))
        graph.add("Reshape", [quantize.output[0], target], name)
    elif over == [1] and len(shape) == 4:
        axes = graph.constant("axes", np.array([1], np.int64))
        graph.add("Squeeze", [quantize.output[0], axes], name)
    else:
        graph.add("Flatten", [quantize.output[0]], name, axis=1)
