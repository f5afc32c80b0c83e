"""What a learnt student was before: its original parameters, kept beside the learnt ones.

The program always holds the learnt values, which conversion turns into codes. In float mode the
originals take their place, so that the float reference stays the teacher.
"""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, fx

from emptyset.graph.operators import (
    argument,
    attribute,
    layer_path,
    parameter_of,
    weighted_layers,
)

# Written as parameters, yet nothing may train them: statistics, and the bounds of clips.
FIXED = (
    "frozen_mean", "frozen_inverse_std", "clip_low", "clip_high", "output_mean",
    "output_deviation", "absorbed",
)  # fmt: skip
# Before the path of an original, in a saved state.
ORIGINAL = "original:"


def trainable(program: fx.GraphModule) -> dict[str, torch.nn.Parameter]:
    """Every parameter that training may change, by path: weights, biases, BatchNorm's own."""
    return {
        path: parameter
        for path, parameter in program.named_parameters()
        if parameter.is_floating_point() and not path.endswith(FIXED)
    }


@contextlib.contextmanager
def originals_in_place(program: fx.GraphModule, originals: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the parameters at these paths have their original values.

    Values are copied in place, so that blocks, which share the parameters, see it too, and autograd
    refuses a backward through a forward that began before.
    """
    tensors = {path: attribute(program, path) for path in originals}
    learnt = {path: tensor.detach().clone() for path, tensor in tensors.items()}
    put(tensors, originals)
    try:
        yield
    finally:
        put(tensors, learnt)


@torch.no_grad()
def put(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy each value into the tensor of the same name."""
    for name, value in values.items():
        tensors[name].copy_(value)


def unlearnt(
    program: fx.GraphModule, originals: Mapping[str, Tensor], switched_on: list[str]
) -> dict[str, Tensor]:
    """Originals of every parameter but those of layers whose weight is quantized.

    Biases that layers share among them (`bias_absorption`) are all original or all learnt: ranges
    were set behind the learnt ones, so these stay as soon as anything is quantized.

    Args:
        program: Holds the learnt values.
        originals: By path.
        switched_on: Names of quantizers; a weight's is the path of the weight.
    """
    if not switched_on:
        return dict(originals)
    learnt, parameters = set[str](), dict(program.named_parameters())
    for layer in weighted_layers(program):
        weight, bias = parameter_of(layer.args[1]), parameter_of(argument(layer, 2))
        assert weight is not None
        if str(weight.target) in switched_on:
            learnt.add(str(weight.target))
        elif f"{layer_path(layer)}.absorbed" not in parameters:
            continue
        if bias is not None:
            learnt.add(str(bias.target))
    return {path: value for path, value in originals.items() if path not in learnt}


def separated(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A saved state without its originals, and these by path."""
    rest = {name: value for name, value in state.items() if not name.startswith(ORIGINAL)}
    originals = {
        name.removeprefix(ORIGINAL): value for name, value in state.items() if name not in rest
    }
    return rest, originals
