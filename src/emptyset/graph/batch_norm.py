"""What becomes of BatchNorm in the student's graph.

``fold``    into the convolution or linear before it (default).
``frozen``  rewritten as ``(x - mean) * (1 / std) * weight + bias``: statistics fixed, weight and
            bias trainable; undone at export. Default of the published recipes on `every_layer`.

A BatchNorm that nothing can absorb (pre-activation, DenseNet) stays, or becomes a depthwise 1x1
convolution in plan `integer`.
"""

import math
from typing import Any

import torch
from torch import Tensor, fx

from emptyset.errors import UnsupportedModelError
from emptyset.graph.channel_labels import (
    channel_axis,
    channels_along,
    labels_behind,
    own_labels,
    shape_of,
)
from emptyset.graph.edits import has
from emptyset.graph.nodes import call, finish, get_parameter, set_parameter
from emptyset.graph.operators import (
    argument,
    attribute,
    is_depthwise_transposed,
    is_parameter,
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
RESHAPES = {
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "_unsafe_view", "transpose",
    "permute",
}  # fmt: skip


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
    """Fold every BatchNorm that follows a convolution or linear; gives how many were folded.

    A layer that is called several times has one weight: it takes a BatchNorm in where the same one
    follows every call, once for all of them.
    """
    graph, gone = graph_module.graph, set[fx.Node]()
    for node in list(graph.nodes):
        if name_of(node) != "batch_norm" or node in gone:
            continue
        layer = _absorber(node)
        calls = {} if layer is None else _calls(layer, node)
        if not calls:
            continue
        _fold_one(graph_module, list(calls), node)
        for norm in calls.values():
            source = norm.args[0]
            assert isinstance(source, fx.Node)
            norm.replace_all_uses_with(source)
            graph.erase_node(norm)
        gone.update(calls.values())
    finish(graph_module)
    return len(gone)


def _absorber(node: fx.Node) -> fx.Node | None:
    """The layer that can take this BatchNorm in: read by nobody else, its channels along axis 1."""
    reshapes: list[fx.Node] = []
    source = node.args[0]
    while isinstance(source, fx.Node) and len(_readers(source)) == 1:
        if is_weighted(source):
            # One weight scale for all channels: factors of their own would pull them apart.
            fits = _lands_on_channels(source, reshapes) and not is_depthwise_transposed(source)
            return source if fits else None
        if name_of(source) not in RESHAPES:
            return None
        reshapes.insert(0, source)
        source = source.args[0]
    return None


def _readers(node: fx.Node) -> list[fx.Node]:
    """Who reads the tensor's values, not only its size."""
    return [user for user in node.users if name_of(user) != "sym_size"]


def _lands_on_channels(layer: fx.Node, reshapes: list[fx.Node]) -> bool:
    """Whether axis 1 behind these reshapes holds the layer's channels, in their order."""
    axis = channel_axis(layer)
    if not reshapes:
        return axis == 1
    labels = {layer: own_labels(layer)}
    for node in reshapes:
        behind = labels_behind(node, labels)
        if behind is None:
            return False
        labels[node] = behind
    channels = channels_along(labels[reshapes[-1]], 1)
    return channels is not None and channels.tolist() == list(range(shape_of(layer)[axis]))


def _calls(layer: fx.Node, norm: fx.Node) -> dict[fx.Node, fx.Node]:
    """Every call of the layer, and the BatchNorm that follows it; nothing where these differ."""
    weight, bias = layer.args[1], argument(layer, 2)
    assert isinstance(weight, fx.Node)
    if bias is not None and not is_parameter(bias):
        return {}
    if len(weight.users) == 1:
        return {layer: norm}
    behind = {_absorber(node): node for node in layer.graph.nodes if name_of(node) == "batch_norm"}
    calls = {}
    for user in weight.users:
        other = behind.get(user)
        if other is None or other.args[1:] != norm.args[1:]:
            return {}
        same = name_of(user) == name_of(layer) and argument(user, 6) == argument(layer, 6)
        if not same or user.args[1] is not weight or argument(user, 2) is not bias:
            return {}
        calls[user] = other
    return calls


def _fold_one(graph_module: fx.GraphModule, calls: list[fx.Node], norm: fx.Node) -> None:
    """Take a BatchNorm into the weight and bias that these calls of a layer share."""
    layer, (factor, offset) = calls[0], statistics(graph_module, norm)
    weight_node, bias_node = layer.args[1], argument(layer, 2)
    assert isinstance(weight_node, fx.Node)
    weight = attribute(graph_module, str(weight_node.target)).detach()
    old = None if bias_node is None else attribute(graph_module, str(bias_node.target)).detach()
    folded = _scaled(layer, weight.double(), factor).to(weight.dtype)
    bias = offset + (0 if old is None else old.double() * factor)
    set_parameter(graph_module, str(weight_node.target), folded)
    _set_bias(graph_module, calls, bias.to(weight.dtype))
    for one in calls:
        one.meta[BATCH_NORM_OUTPUT] = output_statistics(graph_module, norm)


def _scaled(layer: fx.Node, weight: Tensor, factor: Tensor) -> Tensor:
    """The weight with each output channel multiplied by its factor ``(C,)``."""
    around = [1] * (weight.dim() - 2)
    if weight_axis(layer) == 0:
        return weight * factor.view(-1, 1, *around)
    # Of a transposed convolution, (C_in, C_out / groups, ...): the groups lie behind one another.
    groups = argument(layer, 6) or 1
    grouped = weight.reshape(groups, -1, *weight.shape[1:])
    scaled = grouped * factor.view(groups, 1, -1, *around)
    return scaled.reshape(weight.shape)


def _set_bias(graph_module: fx.GraphModule, calls: list[fx.Node], bias: Tensor) -> None:
    """Give a layer this bias in all its calls, as a parameter of its own."""
    weight_node, existing = calls[0].args[1], argument(calls[0], 2)
    assert isinstance(weight_node, fx.Node)
    if existing is not None and set(existing.users) <= set(calls):
        set_parameter(graph_module, str(existing.target), bias)
        return
    path = str(weight_node.target).removesuffix("weight") + "bias"
    while has(graph_module, path):
        path += "_own"
    set_parameter(graph_module, path, bias)
    with graph_module.graph.inserting_after(weight_node):
        node = get_parameter(graph_module.graph, path, bias, like=calls[0])
    for one in calls:
        one.args = (*one.args[:2], node, *one.args[3:])


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
    # One weight for all calls of one BatchNorm.
    made: dict[Any, list[fx.Node]] = {}
    for node in list(graph.nodes):
        if name_of(node) != "batch_norm" or node.meta["val"].dim() != 4:
            continue
        factor, offset = statistics(graph_module, node)
        path = str(node.args[3].target).removesuffix("running_mean")
        values = {"weight": factor.float().view(-1, 1, 1, 1), "bias": offset.float()}
        with graph.inserting_before(node):
            if node.args[1:] not in made:
                made[node.args[1:]] = []
                for name, value in values.items():
                    set_parameter(graph_module, f"{path}depthwise.{name}", value)
                    parameter = get_parameter(graph, f"{path}depthwise.{name}", value, like=node)
                    made[node.args[1:]].append(parameter)
            operands = made[node.args[1:]]
            ones = ([1, 1], [0, 0], [1, 1], math.prod(factor.shape))
            new = call(graph, ATEN.conv2d.default, (node.args[0], *operands, *ones), node)
        new.meta["was_batch_norm"] = True
        new.meta[BATCH_NORM_OUTPUT] = output_statistics(graph_module, node)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        turned += 1
    finish(graph_module)
    return turned
