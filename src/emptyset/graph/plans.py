"""A plan says which tensors are quantized, with how many bits, and by which fake quantizer.

A plan is a PT2E ``Quantizer``: it annotates the edges of a captured graph. This file holds what
plans share: the specs of weights and activations, the layers of the protocol, and overrides.
"""

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from emptyset.errors import RecipeError
from emptyset.graph.operators import (
    is_tensor,
    is_weighted,
    layer_path,
    pass_inputs,
    tensor_inputs,
    weight_axis,
    weighted_layers,
)
from emptyset.quantizers.affine import PerChannelAffineFakeQuantizer, PerTensorAffineFakeQuantizer
from emptyset.quantizers.bits import Bits
from emptyset.quantizers.pt2e import QuantizationAnnotation, QuantizationSpec, Quantizer
from emptyset.registry import nearest

ANNOTATION = "quantization_annotation"


def activation_spec(bits: int) -> Any:
    """Affine uint8 codes ``0 .. 2^bits - 1``, one scale per tensor."""
    return QuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=2**bits - 1,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=PerTensorAffineFakeQuantizer.with_args(),
    )


def weight_spec(node: fx.Node, bits: int, *, symmetric: bool) -> Any:
    """int8 codes, one scale per output channel.

    Symmetric is restricted (codes ``±(2^(bits-1) - 1)``); affine uses all ``2^bits`` codes.
    """
    top = 2 ** (bits - 1) - 1
    scheme = torch.per_channel_symmetric if symmetric else torch.per_channel_affine
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=-top if symmetric else -top - 1,
        quant_max=top,
        qscheme=scheme,
        ch_axis=weight_axis(node),
        observer_or_fake_quant_ctr=PerChannelAffineFakeQuantizer.with_args(),
    )


def annotate(node: fx.Node, inputs: Mapping[fx.Node, Any], output: Any) -> None:
    """Set one node's annotation, adding to what it already has."""
    before = node.meta.get(ANNOTATION)
    merged = dict(before.input_qspec_map) | dict(inputs) if before else dict(inputs)
    kept = output if output is not None else (before.output_qspec if before else None)
    node.meta[ANNOTATION] = QuantizationAnnotation(merged, kept, _annotated=True)


@dataclass(frozen=True)
class LayerBits:
    """What the plan gave one convolution or linear.

    Attributes:
        weights: Bits of the weight.
        inputs: Bits of the input, or None: left in float.
        role: ``first``, ``last``, ``second``, ``inner`` or ``batch_norm``.
    """

    weights: int
    inputs: int | None
    role: str


def roles(graph_module: fx.GraphModule) -> dict[fx.Node, str]:
    """``first``, ``second``, ``last`` or ``inner`` for every layer of the protocol.

    First layers are reached from the input without passing another layer, last layers reach the
    output so. Second layers read nothing but the output of first layers: behind a residual
    addition the skipped layers have their say too, and a layer there is an inner one.
    """
    behind: dict[fx.Node, set[fx.Node]] = {}
    for node in graph_module.graph.nodes:
        if node.op == "placeholder":
            behind[node] = {node}
            continue
        # Tensors only: nearly every reshape of a transformer reads the image's batch size.
        for source in tensor_inputs(node):
            if source in behind:
                layers = {source} if counts(source) else behind[source]
                behind.setdefault(node, set()).update(layers)
    images = {node for node in behind if node.op == "placeholder"}
    first = {node for node, layers in behind.items() if counts(node) and layers & images}
    reaches: set[fx.Node] = set()
    for node in reversed(list(graph_module.graph.nodes)):
        passed_on = is_tensor(node) and any(u in reaches and not counts(u) for u in node.users)
        if node.op == "output" or passed_on:
            reaches.add(node)
    found: dict[fx.Node, str] = {}
    for node in weighted_layers(graph_module):
        if not counts(node):
            found[node] = "batch_norm"
        elif node in reaches:
            found[node] = "last"
        else:
            second = bool(behind.get(node)) and behind[node] <= first
            found[node] = "first" if node in first else "second" if second else "inner"
    return found


def counts(node: fx.Node) -> bool:
    """Whether the node is a layer of the protocol (a BatchNorm turned into one is not)."""
    return is_weighted(node) and not node.meta.get("was_batch_norm")


def apply_overrides(
    layers: dict[fx.Node, LayerBits], overrides: Mapping[str, str]
) -> dict[fx.Node, LayerBits]:
    """Other bits for the layers whose path matches a pattern, for example ``{"layer1.*": "w8a8"}``.

    Raises:
        RecipeError: If a pattern matches no layer.
        BitsError: If the bits cannot be read.
    """
    changed = dict(layers)
    paths = {node: layer_path(node) for node in layers}
    for pattern, text in overrides.items():
        bits = Bits.parse(text)
        hits = [node for node, path in paths.items() if fnmatch.fnmatchcase(path, pattern)]
        if not hits:
            raise RecipeError(
                f"plan.overrides: no layer matches '{pattern}'."
                f"{nearest(pattern, list(paths.values()))} Layers: "
                f"{', '.join(list(paths.values())[:12])}{' ...' if len(paths) > 12 else ''}."
            )
        for node in hits:
            inputs = None if changed[node].inputs is None else bits.activations
            changed[node] = LayerBits(bits.weights, inputs, changed[node].role)
    return changed


def through_passes(node: fx.Node) -> fx.Node:
    """The node whose values this one hands on, past reshapes, pools and the like."""
    from emptyset.graph.operators import is_pass

    while is_pass(node) and is_tensor(pass_inputs(node)[0]):
        node = pass_inputs(node)[0]
    return node


class PlanQuantizer(Quantizer):
    """What PT2E asks of a quantizer; a plan overrides ``annotate``.

    Attributes:
        layers: Filled by ``annotate``: what each layer was given.
        float_inputs: Filled by ``annotate``: paths of layers whose input stays float.
    """

    def __init__(self, bits: Bits, overrides: Mapping[str, str]) -> None:
        super().__init__()
        self.bits, self.overrides = bits, overrides
        self.layers: dict[fx.Node, LayerBits] = {}
        self.float_inputs: list[str] = []

    def validate(self, model: fx.GraphModule) -> None:
        """Nothing beyond what ``annotate`` checks."""
