"""Takes frozen BatchNorm into the quantized weight before it, with the integer codes unchanged.

    (x_hat_w * x - mean) * factor + bias  =  (x_hat_w * factor) * x + (bias - mean * factor)

The scale of output channel c becomes ``scale_c * |factor_c|``; where ``factor_c < 0`` the codes are
mirrored (``code -> low + high - code``, the zero point likewise), which negates every weight.
"""

from typing import Any

import torch
from torch import Tensor, fx

from emptyset.graph.nodes import finish, set_parameter
from emptyset.graph.operators import argument, attribute, name_of, parameter_of

# Axes of the BatchNorm's constants where they lie along the layer's channels.
ALONG_CHANNELS = {"conv1d": 2, "conv2d": 3, "linear": 1}


@torch.no_grad()
def fold_frozen_batch_norm(program: fx.GraphModule) -> int:
    """Fold every ``sub, mul, mul, add`` that `batch_norm="frozen"` made and a layer precedes."""
    folded = 0
    for node in list(program.graph.nodes):
        chain = frozen_chain(program, node)
        if chain and _fold_one(program, node, chain):
            folded += 1
    finish(program)
    return folded


def frozen_chain(program: fx.GraphModule, layer: fx.Node) -> list[fx.Node]:
    """The frozen BatchNorm's nodes behind the layer, in order; nothing where it cannot take them.

    A linear on tokens has its channels last; a BatchNorm behind it goes along the tokens.
    """
    found: list[fx.Node] = []
    node, axes = layer, ALONG_CHANNELS.get(name_of(layer))
    while len(node.users) == 1:
        node = next(iter(node.users))
        constant = parameter_of(argument(node, 1))
        if constant is None or ".frozen_" not in f".{constant.target}":
            break
        if attribute(program, str(constant.target)).dim() != axes:
            return []
        found.append(node)
        if str(constant.target).endswith("frozen_bias"):
            break
    return found


def factor_and_bias(
    program: fx.GraphModule, layer: fx.Node, chain: list[fx.Node]
) -> tuple[Tensor, Tensor]:
    """What layer and BatchNorm are together: ``factor * (weight * x) + bias``, ``()`` or ``(C,)``.

    Args:
        program: A student's, or converted.
        layer: Convolution or linear.
        chain: From ``frozen_chain``; empty: factor 1 and the layer's own bias.
    """
    factor, offset = torch.ones((), dtype=torch.double), torch.zeros((), dtype=torch.double)
    bias_node = parameter_of(argument(layer, 2))
    if bias_node is not None:
        offset = offset + attribute(program, str(bias_node.target)).detach().double()
    for node in chain:
        constant = parameter_of(node.args[1])
        assert constant is not None
        value = attribute(program, str(constant.target)).detach().double().reshape(-1)
        if name_of(node) == "mul":
            factor, offset = factor * value, offset * value
        else:
            offset = offset - value if name_of(node) == "sub" else offset + value
    return factor, offset


def _fold_one(program: fx.GraphModule, layer: fx.Node, chain: list[fx.Node]) -> bool:
    dequantize = layer.args[1]
    if not isinstance(dequantize, fx.Node) or "dequantize_per_channel" not in str(
        dequantize.target
    ):
        return False
    arguments: tuple[Any, ...] = dequantize.args
    axis, low, high = (int(value) for value in arguments[3:6])
    codes, scale, zero_point = (attribute(program, str(a.target)) for a in arguments[:3])
    factor, bias = factor_and_bias(program, layer, chain)
    negative = (factor < 0).expand(len(scale))
    shape = [1] * codes.dim()
    shape[axis] = -1
    mirrored = (low + high - codes.to(torch.int16)).to(codes.dtype)
    turned = (low + high - zero_point).to(zero_point.dtype)
    # Of its own: a layer that is called twice shares all of it with the other call.
    own = {
        "codes": torch.where(negative.view(shape), mirrored, codes),
        "scale": (scale.double() * factor.abs()).to(scale.dtype),
        "zero_point": torch.where(negative, turned, zero_point),
        "bias": bias.float().expand(len(scale)).clone(),
    }
    graph = program.graph
    with graph.inserting_before(layer):
        nodes = [_constant(program, layer, name, value) for name, value in own.items()]
        weight = graph.node_copy(dequantize)
        weight.args = (*nodes[:3], *arguments[3:])
    layer.args = (layer.args[0], weight, nodes[3], *layer.args[3:])
    chain[-1].replace_all_uses_with(layer)
    for node in reversed(chain):
        graph.erase_node(node)
    return True


def _constant(program: fx.GraphModule, layer: fx.Node, name: str, value: Tensor) -> fx.Node:
    """A node that reads this constant of the layer."""
    path = f"{layer.name}_folded.{name}"
    set_parameter(program, path, value)
    node = program.graph.create_node("get_attr", path)
    node.meta["val"] = layer.meta["val"].fake_mode.from_tensor(value, static_shapes=True)
    return node
