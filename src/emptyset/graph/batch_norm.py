"""What becomes of BatchNorm in the student's graph.

``fold``    into the convolution or linear before it (default).
``frozen``  rewritten as ``(x - mean) * (1 / std) * weight + bias``: statistics fixed, weight and
            bias trainable; undone at export. Default of the published recipes on `every_layer`.

A BatchNorm that nothing can absorb (pre-activation, DenseNet) stays, or becomes a depthwise 1x1
convolution in plan `integer`.
"""

import math

import torch
from torch import Tensor, fx

from emptyset.errors import UnsupportedModelError
from emptyset.graph.nodes import call, finish, get_parameter, set_parameter
from emptyset.graph.operators import (
    argument,
    attribute,
    is_parameter,
    is_tensor,
    is_weighted,
    module_path,
    name_of,
    weight_axis,
)

ATEN = torch.ops.aten
# Under this key a node tells mean and deviation of its output, ``(C,)`` each, as BatchNorm knows.
BATCH_NORM_OUTPUT = "batch_norm_output"
# Under this key the first step of a frozen BatchNorm tells what its layer would train with.
MOMENTUM_AND_EPSILON = "momentum_and_epsilon"
RESHAPES = {"view", "reshape", "flatten", "unflatten", "_unsafe_view", "transpose", "permute"}


def statistics(graph_module: fx.GraphModule, node: fx.Node) -> tuple[Tensor, Tensor]:
    """Factor and offset of one batch_norm node: ``out = factor * x + offset``, each ``(C,)``."""
    weight, bias, mean, var = (
        None if v is None else v.double() for v in _stored(graph_module, node)
    )
    assert mean is not None
    assert var is not None
    factor = (var + float(node.args[7])).rsqrt()  # type: ignore[arg-type]
    factor = factor if weight is None else factor * weight
    offset = -mean * factor
    return factor, offset if bias is None else offset + bias


def output_statistics(graph_module: fx.GraphModule, node: fx.Node) -> tuple[Tensor, Tensor]:
    """Mean and deviation of one batch_norm node's output, ``(C,)`` double each [units of it]."""
    weight, bias, _, var = (None if v is None else v.double() for v in _stored(graph_module, node))
    assert var is not None
    # Not quite 1 before the weight, because of epsilon: a dead channel stays dead.
    deviation = (var / (var + float(node.args[7]))).sqrt()  # type: ignore[arg-type]
    deviation = deviation if weight is None else deviation * weight.abs()
    return torch.zeros_like(var) if bias is None else bias, deviation


def _stored(graph_module: fx.GraphModule, node: fx.Node) -> list[Tensor | None]:
    """Weight, bias, mean and variance of one batch_norm node; the first two may be None."""
    values = [
        attribute(graph_module, str(a.target)).detach() if is_parameter(a) else None
        for a in node.args[1:5]
    ]
    if values[2] is None or values[3] is None:
        raise UnsupportedModelError(
            f"{module_path(node) or node.name}: this BatchNorm has no stored statistics "
            "(track_running_stats=False), so one image's output depends on its batch. Store "
            "statistics, or replace the layer by one that normalises each image by itself."
        )
    return values


def fold(graph_module: fx.GraphModule) -> int:
    """Fold every BatchNorm that follows a convolution or linear; gives how many were folded."""
    folded = 0
    for node in list(graph_module.graph.nodes):
        if name_of(node) != "batch_norm":
            continue
        layer = _absorber(node)
        if layer is None or not _fold_one(graph_module, layer, node):
            continue
        node.replace_all_uses_with(node.args[0])
        graph_module.graph.erase_node(node)
        folded += 1
    finish(graph_module)
    return folded


def _absorber(node: fx.Node) -> fx.Node | None:
    """The layer that can take this BatchNorm in: reached alone, through reshapes if linear."""
    source, through = node.args[0], False
    while isinstance(source, fx.Node) and sum(map(is_tensor, source.users)) == 1:
        if is_weighted(source):
            return source if not through or name_of(source) == "linear" else None
        if name_of(source) not in RESHAPES:
            return None
        source, through = source.args[0], True
    return None


def _fold_one(graph_module: fx.GraphModule, layer: fx.Node, node: fx.Node) -> bool:
    factor, offset = statistics(graph_module, node)
    weight_node = layer.args[1]
    assert isinstance(weight_node, fx.Node)
    weight = attribute(graph_module, str(weight_node.target))
    axis = weight_axis(layer)
    if weight.shape[axis] != len(factor) or len(weight_node.users) != 1:
        return False
    shape = [1] * weight.dim()
    shape[axis] = -1
    bias_node = argument(layer, 2)
    old = attribute(graph_module, str(bias_node.target)) if is_parameter(bias_node) else None
    folded = (weight.detach().double() * factor.view(shape)).to(weight.dtype)
    bias = offset + (0 if old is None else old.detach().double() * factor)
    set_parameter(graph_module, str(weight_node.target), folded)
    set_bias(graph_module, layer, bias.to(weight.dtype))
    layer.meta[BATCH_NORM_OUTPUT] = output_statistics(graph_module, node)
    return True


def set_bias(graph_module: fx.GraphModule, layer: fx.Node, bias: Tensor) -> None:
    """Give a convolution or linear this bias, as a parameter of its own."""
    weight_node = layer.args[1]
    assert isinstance(weight_node, fx.Node)
    path = str(weight_node.target).removesuffix("weight") + "bias"
    existing = argument(layer, 2)
    if is_parameter(existing) and len(existing.users) == 1:
        path = str(existing.target)
    set_parameter(graph_module, path, bias)
    if is_parameter(existing) and str(existing.target) == path:
        return
    graph = graph_module.graph
    with graph.inserting_before(layer):
        node = get_parameter(graph, path, bias, like=layer)
    layer.args = (*layer.args[:2], node, *layer.args[3:])


def freeze(graph_module: fx.GraphModule) -> int:
    """Rewrite every BatchNorm as ``(x - mean) * inverse_std * weight + bias``; gives how many."""
    graph, rewritten = graph_module.graph, 0
    for node in list(graph.nodes):
        if name_of(node) != "batch_norm":
            continue
        source = node.args[0]
        shape = [-1] + [1] * (node.meta["val"].dim() - 2)
        weight, bias, mean, var = _stored(graph_module, node)
        path = str(node.args[3].target).removesuffix("running_mean")
        assert var is not None
        inverse = (var.double() + float(node.args[7])).rsqrt().float()
        steps = [
            (ATEN.sub.Tensor, "frozen_mean", mean),
            (ATEN.mul.Tensor, "frozen_inverse_std", inverse),
            (ATEN.mul.Tensor, "frozen_weight", weight),
            (ATEN.add.Tensor, "frozen_bias", bias),
        ]
        with graph.inserting_before(node):
            for target, name, value in steps:
                if value is None:
                    continue
                shaped = value.view(shape).clone()
                set_parameter(graph_module, path + name, shaped)
                parameter = get_parameter(graph, path + name, shaped, like=node)
                source = call(graph, target, (source, parameter), node)
                source.meta["frozen_batch_norm"] = True
                if name == "frozen_mean":
                    momentum_and_epsilon = tuple(map(float, node.args[6:8]))
                    source.meta[MOMENTUM_AND_EPSILON] = momentum_and_epsilon
        source.meta[BATCH_NORM_OUTPUT] = output_statistics(graph_module, node)
        node.replace_all_uses_with(source)
        graph.erase_node(node)
        rewritten += 1
    finish(graph_module)
    return rewritten


def to_depthwise(graph_module: fx.GraphModule) -> int:
    """Turn every BatchNorm that is left on ``(N, C, H, W)`` into a depthwise 1x1 convolution."""
    graph, turned = graph_module.graph, 0
    for node in list(graph.nodes):
        if name_of(node) != "batch_norm" or node.meta["val"].dim() != 4:
            continue
        factor, offset = statistics(graph_module, node)
        path = str(node.args[3].target).removesuffix("running_mean")
        weight = factor.float().view(-1, 1, 1, 1)
        set_parameter(graph_module, path + "depthwise.weight", weight)
        set_parameter(graph_module, path + "depthwise.bias", offset.float())
        with graph.inserting_before(node):
            operands = [
                get_parameter(graph, path + "depthwise.weight", weight, like=node),
                get_parameter(graph, path + "depthwise.bias", offset.float(), like=node),
            ]
            ones = ([1, 1], [0, 0], [1, 1], math.prod(factor.shape))
            new = call(graph, ATEN.conv2d.default, (node.args[0], *operands, *ones), node)
        new.meta["was_batch_norm"] = True
        new.meta[BATCH_NORM_OUTPUT] = output_statistics(graph_module, node)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        turned += 1
    finish(graph_module)
    return turned
