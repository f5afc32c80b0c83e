"""The two placements that published convolutional results use: `every_layer` and `edges_8bit`."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from emptyset.graph.operators import is_average, layer_path, name_of, tensor_inputs
from emptyset.graph.plans import (
    LayerBits,
    PlanQuantizer,
    activation_spec,
    annotate,
    apply_overrides,
    roles,
    through_passes,
    weight_spec,
)
from emptyset.quantizers.bits import Bits
from emptyset.registry import plans


@dataclass(frozen=True, slots=True, kw_only=True)
class EveryLayerSettings:
    """Settings of plan `every_layer`.

    Attributes:
        strict: Also quantize the layer inputs that the published rule leaves in float, the image
            and the pooled features excepted.
    """

    strict: bool = False


@plans.register(
    "every_layer",
    EveryLayerSettings,
    sentence="Every layer's weight and every ReLU's output at the asked bits (GDFQ's placement).",
    source="GDFQ, Qimera, IntraQ, AIT, AdaDFQ, HAST, DFFG, Enhancing Diversity",
)
@dataclass(frozen=True)
class EveryLayerPlan:
    """Every convolution and linear, first and last included, b bits per output channel, affine;
    activations b bits per tensor, affine, after every ReLU and ReLU6 only.
    """

    settings: EveryLayerSettings

    def quantizer(self, bits: Bits, overrides: Mapping[str, str]) -> "EveryLayerQuantizer":
        """The PT2E quantizer for these bits."""
        return EveryLayerQuantizer(bits, overrides, self.settings)


class EveryLayerQuantizer(PlanQuantizer):
    """Annotates a captured graph by the rules of plan `every_layer`."""

    integer_biases = False

    def __init__(
        self, bits: Bits, overrides: Mapping[str, str], settings: EveryLayerSettings
    ) -> None:
        super().__init__(bits, overrides)
        self.settings = settings

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Annotate every edge, in place."""
        low, given = activation_spec(self.bits.activations), roles(model)
        self.layers = apply_overrides(
            {n: LayerBits(self.bits.weights, self.bits.activations, r) for n, r in given.items()},
            self.overrides,
        )
        for node in model.graph.nodes:
            if name_of(node) in {"relu", "relu6"} or _is_relu6(node):
                annotate(node, {}, low)
        for node, layer in self.layers.items():
            weight, source = node.args[1], node.args[0]
            assert isinstance(weight, fx.Node)
            assert isinstance(source, fx.Node)
            inputs = {weight: weight_spec(node, layer.weights, symmetric=False)}
            origin = through_passes(source)
            if origin.meta.get("quantization_annotation") is None or layer.inputs is None:
                excepted = origin.op == "placeholder" or is_average(origin)
                if self.settings.strict and not excepted and layer.inputs is not None:
                    inputs[source] = activation_spec(layer.inputs)
                elif not excepted:
                    self.float_inputs.append(layer_path(node))
                self.layers[node] = LayerBits(
                    layer.weights, layer.inputs if source in inputs else None, layer.role
                )
            elif layer.inputs != self.bits.activations:
                inputs[source] = activation_spec(layer.inputs)
            annotate(node, inputs, None)
        return model


def _is_relu6(node: fx.Node) -> bool:
    return name_of(node) == "hardtanh" and tuple(node.args[1:3]) == (0.0, 6.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Edges8BitSettings:
    """Settings of plan `edges_8bit`.

    Attributes:
        second_layer_input_8: Whether the second layer's input has 8 bits (BRECQ, Genie: yes;
            QDrop: no).
        last_layer_input_8: Whether the last layer's input has 8 bits.
        quantized_shortcuts: Whether a residual addition reads what the layers beside it read,
            quantized, as in the released codes (Genie: one quantizer for the shortcut and the
            block's first layer; BRECQ, QDrop: the block's output). Otherwise inputs of layers only
            are quantized, and an identity shortcut stays in float.
    """

    second_layer_input_8: bool = True
    last_layer_input_8: bool = True
    quantized_shortcuts: bool = False


@plans.register(
    "edges_8bit",
    Edges8BitSettings,
    sentence="Input of every layer at the asked bits, first and last layer's weights at 8 bits.",
    source="BRECQ, QDrop, Genie; GenQ by inference (the paper states no policy)",
)
@dataclass(frozen=True)
class Edges8BitPlan:
    """Weights b bits, first and last layer 8; input of every convolution and linear b bits, the
    image not; per output channel and per tensor, affine.
    """

    settings: Edges8BitSettings

    def quantizer(self, bits: Bits, overrides: Mapping[str, str]) -> "Edges8BitQuantizer":
        """The PT2E quantizer for these bits."""
        return Edges8BitQuantizer(bits, overrides, self.settings)


class Edges8BitQuantizer(PlanQuantizer):
    """Annotates a captured graph by the rules of plan `edges_8bit`."""

    integer_biases = False

    def __init__(
        self, bits: Bits, overrides: Mapping[str, str], settings: Edges8BitSettings
    ) -> None:
        super().__init__(bits, overrides)
        self.settings = settings

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Annotate every edge, in place."""
        self.layers = apply_overrides(
            {node: self._layer_bits(role) for node, role in roles(model).items()}, self.overrides
        )
        for node, layer in self.layers.items():
            weight, source = node.args[1], node.args[0]
            assert isinstance(weight, fx.Node)
            assert isinstance(source, fx.Node)
            inputs = {weight: weight_spec(node, layer.weights, symmetric=False)}
            if through_passes(source).op == "placeholder":
                self.layers[node] = LayerBits(layer.weights, None, layer.role)
            elif layer.inputs is not None:
                inputs[source] = activation_spec(layer.inputs)
            annotate(node, inputs, None)
        if self.settings.quantized_shortcuts:
            self._quantize_shortcuts(model)
        return model

    def _quantize_shortcuts(self, model: fx.GraphModule) -> None:
        """Additions read a tensor as the first of the layers that read it does."""
        bits: dict[fx.Node, int] = {}
        for node, layer in self.layers.items():
            source = node.args[0]
            if layer.inputs is not None and isinstance(source, fx.Node):
                bits.setdefault(source, layer.inputs)
        for node in model.graph.nodes:
            if name_of(node) == "add":
                shared = {n: activation_spec(bits[n]) for n in tensor_inputs(node) if n in bits}
                annotate(node, shared, None)

    def _layer_bits(self, role: str) -> LayerBits:
        eight = (role == "second" and self.settings.second_layer_input_8) or (
            role == "last" and self.settings.last_layer_input_8
        )
        weights = 8 if role in ("first", "last") else self.bits.weights
        return LayerBits(weights, 8 if eight else self.bits.activations, role)
