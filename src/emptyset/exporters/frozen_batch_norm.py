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


@torch.no_grad()
def fold_frozen_batch_norm(program: fx.GraphModule) -> int:
    """Fold every ``sub, mul, mul, add`` that `batch_norm="frozen"` made and a layer precedes."""
    folded = 0
    for node in list(program.graph.nodes):
        if name_of(node) not in {"conv1d", "conv2d", "linear"}:
            continue
        chain = _chain(node)
        if chain and _fold_one(program, node, chain):
            folded += 1
    finish(program)
    return folded


def _chain(layer: fx.Node) -> list[fx.Node]:
    """The frozen BatchNorm's nodes behind the layer, in order."""
    found: list[fx.Node] = []
    node = layer
    while len(node.users) == 1:
        node = next(iter(node.users))
        constant = parameter_of(argument(node, 1))
        if constant is None or ".frozen_" not in f".{constant.target}":
            break
        found.append(node)
        if str(constant.target).endswith("frozen_bias"):
            break
    return found


def _fold_one(program: fx.GraphModule, layer: fx.Node, chain: list[fx.Node]) -> bool:
    dequantize = layer.args[1]
    if not isinstance(dequantize, fx.Node) or "dequantize_per_channel" not in str(
        dequantize.target
    ):
        return False
    arguments: tuple[Any, ...] = dequantize.args
    codes_node, scale_node, zero_node, axis, low, high = arguments[:6]
    codes = attribute(program, str(codes_node.target))
    scale = attribute(program, str(scale_node.target))
    zero_point = attribute(program, str(zero_node.target))
    factor = torch.ones(len(scale), dtype=torch.double)
    offset = torch.zeros(len(scale), dtype=torch.double)
    bias_node = parameter_of(argument(layer, 2))
    if bias_node is not None:
        offset += attribute(program, str(bias_node.target)).double()
    for node in chain:
        value = attribute(program, str(parameter_of(node.args[1]).target)).double().reshape(-1)  # type: ignore[union-attr]
        if name_of(node) == "mul":
            factor, offset = factor * value, offset * value
        else:
            offset = offset - value if name_of(node) == "sub" else offset + value
    negative = factor < 0
    shape = [1] * codes.dim()
    shape[int(axis)] = -1
    mirrored = (int(low) + int(high) - codes.to(torch.int16)).to(codes.dtype)
    _assign(program, codes_node, torch.where(negative.view(shape), mirrored, codes))
    turned = (int(low) + int(high) - zero_point).to(zero_point.dtype)
    _assign(program, zero_node, torch.where(negative, turned, zero_point))
    _assign(program, scale_node, (scale.double() * factor.abs()).to(scale.dtype))
    weight_path = f"{layer.name}_folded.weight"
    _bias(program, layer, weight_path, offset.float())
    chain[-1].replace_all_uses_with(layer)
    for node in reversed(chain):
        program.graph.erase_node(node)
    return True


def _assign(program: fx.GraphModule, node: object, value: Tensor) -> None:
    assert isinstance(node, fx.Node)
    path = str(node.target)
    *owners, name = path.split(".")
    owner = program.get_submodule(".".join(owners))
    if name in owner._buffers:
        owner._buffers[name] = value
    else:
        owner._parameters[name] = torch.nn.Parameter(value, requires_grad=False)


def _bias(program: fx.GraphModule, layer: fx.Node, path: str, bias: Tensor) -> None:
    existing = parameter_of(argument(layer, 2))
    if existing is not None:
        _assign(program, existing, bias)
        return
    path = path.removesuffix("weight") + "bias"
    set_parameter(program, path, bias)
    with program.graph.inserting_before(layer):
        node = program.graph.create_node("get_attr", path)
    node.meta["val"] = layer.meta["val"].fake_mode.from_tensor(bias, static_shapes=True)
    layer.args = (*layer.args[:2], node, *layer.args[3:])
