"""Biases as the runtime holds them: int32 with the scale of input times weight.

code = round(bias / (scale_input * scale_weight))
"""

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from emptyset.graph.bias_range import LARGEST_CODE
from emptyset.graph.nodes import finish, set_parameter
from emptyset.graph.operators import (
    WEIGHTED,
    argument,
    attribute,
    bias_has_steps,
    name_of,
    origin_of,
    parameter_of,
)
from emptyset.quantizers.bias import round_to_steps


@dataclass(frozen=True)
class IntegerBias:
    """One bias as the runtime holds it.

    Attributes:
        codes: int32, ``(C,)``.
        scale: ``(C,)`` float32 [units of the output per step], as the runtime computes it.
    """

    codes: Tensor
    scale: Tensor


def round_biases(program: fx.GraphModule) -> dict[str, IntegerBias]:
    """Give a converted program the biases that the runtime will use, in place.

    Returns:
        One bias per layer, by the name of the layer's node.
    """
    found: dict[str, IntegerBias] = {}
    for node in list(program.graph.nodes):
        bias_node = argument(node, 2) if name_of(node) in WEIGHTED else None
        if parameter_of(bias_node) is None:
            continue
        assert isinstance(bias_node, fx.Node)
        input_scale = _scale(program, node.args[0])
        weight_scale = _scale(program, node.args[1])
        if input_scale is None or weight_scale is None or not bias_has_steps(node):
            continue
        bias = _own(program, node, bias_node)
        scale = (input_scale * weight_scale).expand(bias.shape)
        if float((bias.detach().double() / scale.double()).abs().max()) > LARGEST_CODE:
            continue  # of a layer that no student has; `bias_range` raises the scales of others
        codes, value = round_to_steps(bias, scale)
        with torch.no_grad():
            bias.copy_(value)
        found[node.name] = IntegerBias(codes, scale)
    finish(program)
    return found


def _own(program: fx.GraphModule, node: fx.Node, bias_node: fx.Node) -> Tensor:
    """The layer's bias; a copy where several layers (one module called twice) share it."""
    bias: Tensor = attribute(program, str(bias_node.target))
    if len(bias_node.users) == 1:
        return bias
    path = f"{node.name}_own_bias"
    set_parameter(program, path, bias.detach().clone())
    with program.graph.inserting_before(node):
        copied = program.graph.create_node("get_attr", path)
    copied.meta = dict(bias_node.meta)
    node.args = (*node.args[:2], copied, *node.args[3:])
    owned: Tensor = attribute(program, path)
    return owned


def _scale(program: fx.GraphModule, node: object) -> Tensor | None:
    """Scale of the dequantize node that gives this value, float32.

    Runtimes move the dequantization past padding, pools and reshapes and fuse the layer then.
    """
    node = origin_of(node)
    if not isinstance(node, fx.Node) or "dequantize_per" not in str(node.target):
        return None
    scale = node.args[1]
    if isinstance(scale, fx.Node):
        return attribute(program, str(scale.target)).detach().float()  # type: ignore[no-any-return]
    return torch.tensor(scale, dtype=torch.float32)
