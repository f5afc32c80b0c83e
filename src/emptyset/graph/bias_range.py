"""Keeps biases inside int32, in every plan.

A runtime holds a bias as int32 with the scale of input times weight. Where its code would leave
``±2^30``, the channel's weight scale is raised first, so that bias and sum stay inside int32. What
such a channel adds to its bias is below a millionth of it; mostly all its weights are zero. (Seen:
MobileNetV1 0.25 has 10 such channels; without the rule two codes differ on a tenth of a tensor's
values.) Where a weight's rounding was learnt, it stays in the channels that were not raised.
"""

import torch
from torch import Tensor

from emptyset.graph.operators import (
    argument,
    attribute,
    bias_has_steps,
    is_depthwise_transposed,
    parameter_of,
    weighted_layers,
)
from emptyset.graph.student import Student
from emptyset.quantizers.affine import AffineFakeQuantizer

LARGEST_CODE = 2**30


@torch.no_grad()
def keep_biases_in_int32(student: Student) -> dict[str, int]:
    """Raise the weight scale of every channel whose bias would not fit; in place, idempotent.

    Codes of learnt rounding are rounded anew in the channels that were raised, and only there.

    Returns:
        Number of channels raised, now or before, by layer path, layers without any left out.
    """
    raised: dict[str, int] = {}
    layers = zip(weighted_layers(student.program), student.layers(), strict=True)
    for node, layer in layers:
        bias_node = parameter_of(argument(node, 2))
        if not bias_has_steps(node):
            continue
        if bias_node is None or not layer.weight_quantizer or not layer.input_quantizer:
            continue
        bias = attribute(student.program, str(bias_node.target)).detach().double().abs()
        quantizer = student.quantizers[layer.weight_quantizer]
        step = student.quantizers[layer.input_quantizer].scale.double()
        if is_depthwise_transposed(node):
            bias = bias.max()[None]  # one scale for all of them
        needed = _float_above(bias / (step * LARGEST_CODE))
        count = int((needed >= quantizer.scale).sum())  # equal: raised at an earlier call
        if count:
            raised[layer.name] = count
            weight_node = parameter_of(node.args[1])
            assert weight_node is not None
            _raise(quantizer, needed, attribute(student.program, str(weight_node.target)))
    return raised


def _float_above(values: Tensor) -> Tensor:
    """Float32 not below the double, so that the rule holds after rounding."""
    return torch.nextafter(values.float(), torch.tensor(float("inf")))


def _raise(quantizer: AffineFakeQuantizer, needed: Tensor, weight: Tensor) -> None:
    """Larger scale; the zero point stays at the same real offset as nearly as codes allow."""
    base, rounding = quantizer.base_codes, quantizer.rounding
    scale = torch.maximum(quantizer.scale, needed)
    middle = quantizer.zero_point.double() * (quantizer.scale / scale)
    low, high = quantizer.quant_min, quantizer.quant_max
    zero_point = middle.round().clamp(low, high).to(torch.int32)
    changed = scale > quantizer.scale
    quantizer.set_parameters(scale, torch.where(changed, zero_point, quantizer.zero_point))
    if base is None or rounding is None or not bool(changed.any()):
        return
    shape = [1] * base.dim()
    shape[quantizer.axis or 0] = -1
    nearest = quantizer.codes(weight) - quantizer.zero_point.view(shape)
    anew = changed.view(shape)
    weight.copy_(quantizer.set_rounding(torch.where(anew, nearest, base), rounding & ~anew))
