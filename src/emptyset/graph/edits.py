"""Changes of the student's graph itself, each told by the name of a parameter it brings.

A refiner may clip every channel at another height, show a layer some input channels twice, or give
a layer a bias. What it adds to the graph is named so that a saved state alone tells how to do it
again: `Student.load_state_dict` repeats every change that its graph does not have yet.

=====================================  =============================================================
``NODE_per_channel.clip_low, _high``   a clip has one pair of bounds per channel
``LAYER.input_index``                  the layer reads its input channels in this order, some twice
``LAYER.bias``                         a layer without bias has one
``LAYER.output_mean, _deviation``      what BatchNorm told of the output, as it is now
``LAYER.absorbed``                     how much of its bias the layer gave to or took from others
=====================================  =============================================================
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from emptyset.graph.channel_labels import channel_axis, shape_of, value_of
from emptyset.graph.nodes import get_parameter, set_parameter
from emptyset.graph.operators import (
    argument,
    attribute,
    bias_has_steps,
    is_parameter,
    layer_path,
    name_of,
    parameter_of,
    weighted_layers,
)
from emptyset.quantizers.affine import AffineFakeQuantizer
from emptyset.quantizers.bias import BiasFakeQuantizer

ATEN = torch.ops.aten
CLIP = "_per_channel"
CLIP_LOW, CLIP_HIGH = "clip_low", "clip_high"
INPUT_INDEX = "input_index"
OUTPUT_MEAN, OUTPUT_DEVIATION = "output_mean", "output_deviation"
ABSORBED = "absorbed"


def has(program: fx.GraphModule, path: str) -> bool:
    """Whether there is a parameter or buffer at a dotted path."""
    try:
        attribute(program, path)
    except AttributeError:
        return False
    return True


def repeat_edits(
    program: fx.GraphModule, state: Mapping[str, Tensor], *, integer_biases: bool
) -> None:
    """Do every change again that a saved state tells of and the program does not have.

    Args:
        program: Prepared.
        state: Parameters by path.
        integer_biases: Whether the plan rounds biases.
    """
    layers = {layer_path(node): node for node in weighted_layers(program)}
    nodes = {node.name: node for node in program.graph.nodes}
    for name, value in state.items():
        owner, _, kind = name.rpartition(".")
        if has(program, name):
            continue
        if kind == CLIP_HIGH and owner.removesuffix(CLIP) in nodes:
            low = state[f"{owner}.{CLIP_LOW}"]
            clip_per_channel(program, nodes[owner.removesuffix(CLIP)], low, value)
        elif owner in layers and kind == INPUT_INDEX:
            reorder_inputs(program, layers[owner], value)
        elif owner in layers and kind == "bias":
            add_bias(program, layers[owner], integer_biases=integer_biases)
        elif owner in layers and kind in (OUTPUT_MEAN, OUTPUT_DEVIATION, ABSORBED):
            set_parameter(program, name, value.clone())
    program.recompile()


def clip_per_channel(program: fx.GraphModule, node: fx.Node, low: Tensor, high: Tensor) -> str:
    """Replace a clip by one with bounds per channel; gives the path of the bounds' owner.

    Args:
        program: Prepared.
        node: ReLU6, hardtanh or clamp that reads a layer.
        low: ``(C,)`` [units of x].
        high: ``(C,)`` [units of x].
    """
    owner, graph = f"{node.name}{CLIP}", program.graph
    around = [1] * (len(shape_of(node)) - 1)
    around[channel_axis(node) - 1] = -1
    source = node.args[0]
    with graph.inserting_before(node):
        bounds = []
        for name, values in ((CLIP_LOW, low), (CLIP_HIGH, high)):
            path, shaped = f"{owner}.{name}", values.detach().float().reshape(around).clone()
            set_parameter(program, path, shaped)
            bounds.append(get_parameter(graph, path, shaped, like=node))
        new = graph.call_function(ATEN.clamp.Tensor, (source, *bounds))
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)
    return owner


def channel_clip_bounds(program: fx.GraphModule, node: fx.Node) -> tuple[Tensor, Tensor] | None:
    """``(C,)`` bounds as the program has them, where the node is a clip per channel."""
    ends = (argument(node, 1), argument(node, 2))
    if name_of(node) != "clamp" or not all(is_parameter(end) for end in ends):
        return None
    low, high = (attribute(program, str(end.target)).detach().flatten() for end in ends)
    return low, high


def lower_uniform_clips(program: fx.GraphModule) -> int:
    """Turn clips with the same bounds in every channel into plain ones; gives how many."""
    lowered = 0
    for node in list(program.graph.nodes):
        bounds = channel_clip_bounds(program, node)
        if bounds is None or any(bool((end != end[0]).any()) for end in bounds):
            continue
        low, high = (float(end[0]) for end in bounds)
        with program.graph.inserting_before(node):
            if (low, high) == (0.0, math.inf):
                new = program.graph.call_function(ATEN.relu.default, (node.args[0],))
            else:
                ends = [None if math.isinf(end) else end for end in (low, high)]
                new = program.graph.call_function(ATEN.clamp.default, (node.args[0], *ends))
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        program.graph.erase_node(node)
        lowered += 1
    program.recompile()
    return lowered


def input_axis(node: fx.Node) -> int:
    """Input-channel axis of the weight of a convolution or linear."""
    return 0 if name_of(node) == "conv_transpose2d" else 1


def reorder_inputs(program: fx.GraphModule, node: fx.Node, index: Tensor) -> None:
    """Let a layer read its input channels in another order, some of them more than once.

    The weight's columns are taken in the same order, so the caller shares each between its copies.

    Args:
        program: Prepared.
        node: A layer of one group.
        index: ``(C',)`` input channel of each column.
    """
    path, graph = f"{layer_path(node)}.{INPUT_INDEX}", program.graph
    weight_node = parameter_of(node.args[1])
    assert weight_node is not None
    weight = attribute(program, str(weight_node.target)).detach()
    index = index.to(weight.device)
    taken = weight.index_select(input_axis(node), index)
    set_parameter(program, str(weight_node.target), taken)
    mode = value_of(node).fake_mode
    weight_node.meta["val"] = mode.from_tensor(taken, static_shapes=True)
    if has(program, path):
        before: Tensor = attribute(program, path)
        set_parameter(program, path, before[index])
        return
    set_parameter(program, path, index.clone())
    source = node.args[0]
    assert isinstance(source, fx.Node)
    values, axis = value_of(source), channel_axis(node)
    with graph.inserting_before(node):
        order = get_parameter(graph, path, index, like=node)
        moved = graph.call_function(ATEN.index_select.default, (source, axis, order))
        moved.meta = {k: v for k, v in node.meta.items() if k in ("nn_module_stack", "stack_trace")}
        with mode:
            moved.meta["val"] = values.index_select(axis, order.meta["val"])
        quantizer = quantizer_of(program, source)
        if quantizer is not None:
            # The same grid again: behind it the file moves codes, and the layer runs on integers.
            name = f"activation_post_process_of_{node.name}"
            program.add_submodule(name, quantizer)
            moved = graph.call_module(name, (moved,))
    node.args = (moved, *node.args[1:])


def add_bias(program: fx.GraphModule, node: fx.Node, *, integer_biases: bool) -> str:
    """Give a layer without bias one of zeros; gives its path."""
    path = f"{layer_path(node)}.bias"
    weight_node = parameter_of(node.args[1])
    assert weight_node is not None
    weight: Tensor = attribute(program, str(weight_node.target))
    outputs = shape_of(node)[channel_axis(node)]
    bias = torch.zeros(outputs, dtype=weight.dtype, device=weight.device)
    set_parameter(program, path, bias)
    with program.graph.inserting_before(node):
        read = get_parameter(program.graph, path, bias, like=node)
    node.args = (*node.args[:2], read, *node.args[3:])
    if integer_biases:
        round_bias(program, node)
    return path


def round_bias(program: fx.GraphModule, node: fx.Node) -> None:
    """Put a bias quantizer before a layer whose input and weight are quantized."""
    bias = parameter_of(argument(node, 2))
    inputs, weight = (quantizer_of(program, a) for a in node.args[:2])
    if bias is None or inputs is None or weight is None or not bias_has_steps(node):
        return
    name = f"bias_fake_quantizer_{node.name}"
    program.add_submodule(name, BiasFakeQuantizer(inputs, weight))
    with program.graph.inserting_before(node):
        rounded = program.graph.call_module(name, (bias,))
    rounded.meta = dict(bias.meta)
    node.args = (*node.args[:2], rounded, *node.args[3:])


def quantizer_of(program: fx.GraphModule, node: Any) -> AffineFakeQuantizer | None:
    """The fake quantizer that this node calls, if it does."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        module = program.get_submodule(str(node.target))
        return module if isinstance(module, AffineFakeQuantizer) else None
    return None
