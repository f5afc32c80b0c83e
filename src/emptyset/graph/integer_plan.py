"""Plan `integer`: what ONNX Runtime executes on integers from end to end.

Rules (DESIGN of the project, each tried): inputs of convolution, linear and matmul have b bits, of
the first and last layer 8; every other tensor that enters or leaves a convolution, linear, matmul,
add, mul, concat or pool has 8. A tensor that only b-bit operators read is quantized once, at b
bits; one that is also read at 8 is quantized in series. A layer owns its clip (ReLU, ReLU6).
Operators that only move values share their input's scale; averages and resizes have their own.
What a network does to its images first (arithmetic with constants) stays float, and so do the
logits.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from emptyset.graph.batch_norm import to_depthwise
from emptyset.graph.operators import (
    argument,
    behind_images,
    is_average,
    is_binary,
    is_clip,
    is_concat,
    is_matmul,
    is_parameter,
    is_pass,
    is_resize,
    is_tensor,
    is_weighted,
    layer_path,
    name_of,
    pass_inputs,
    tensor_inputs,
)
from emptyset.graph.plans import (
    ANNOTATION,
    LayerBits,
    PlanQuantizer,
    activation_spec,
    annotate,
    apply_overrides,
    roles,
    weight_spec,
)
from emptyset.quantizers.bits import Bits
from emptyset.quantizers.pt2e import SharedQuantizationSpec
from emptyset.registry import plans

ARITHMETIC = {"add", "sub", "rsub", "neg", "mul", "div"}


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerSettings:
    """Settings of plan `integer`.

    Attributes:
        second_layer_input_8: Whether the second layer's input has 8 bits too (the BRECQ setting).
        affine_weights: Whether weights below 8 bits have an integer zero point per channel; it is
            folded when the file is loaded, so kernels never see it. At 8 bits always symmetric.
    """

    second_layer_input_8: bool = False
    affine_weights: bool = True


@plans.register(
    "integer",
    IntegerSettings,
    sentence="Every convolution, linear, addition and pool on ONNX Runtime's integer kernels.",
    source="ours; placement of edges_8bit made executable",
)
@dataclass(frozen=True)
class IntegerPlan:
    """See the module docstring."""

    settings: IntegerSettings

    def quantizer(self, bits: Bits, overrides: Mapping[str, str]) -> "IntegerQuantizer":
        """The PT2E quantizer for these bits."""
        return IntegerQuantizer(bits, overrides, self.settings)


class IntegerQuantizer(PlanQuantizer):
    """Annotates a captured graph by the rules of plan `integer`."""

    integer_biases = True

    def __init__(self, bits: Bits, overrides: Mapping[str, str], settings: IntegerSettings) -> None:
        super().__init__(bits, overrides)
        self.settings = settings
        self._preparing: set[fx.Node] = set()

    def transform_for_annotation(self, model: fx.GraphModule) -> fx.GraphModule:
        """BatchNorm that nothing absorbed becomes a depthwise 1x1 convolution."""
        to_depthwise(model)
        return model

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Annotate every edge, in place."""
        given = roles(model)
        self.layers = apply_overrides(
            {node: self._layer_bits(role) for node, role in given.items()}, self.overrides
        )
        for node, layer in self.layers.items():
            symmetric = layer.weights == 8 or not self.settings.affine_weights
            weight = node.args[1]
            assert isinstance(weight, fx.Node)
            annotate(node, {weight: weight_spec(node, layer.weights, symmetric=symmetric)}, None)
        self._preparing = preparing(model)
        for group in groups(model):
            self._annotate_group(group)
        self.float_inputs = [layer_path(node) for node in self.layers if not _reads_quantized(node)]
        return model

    def _layer_bits(self, role: str) -> LayerBits:
        edge = role in ("first", "last", "batch_norm")
        eight = edge or (role == "second" and self.settings.second_layer_input_8)
        weights = 8 if edge else self.bits.weights
        return LayerBits(weights, 8 if eight else self.bits.activations, role)

    def _annotate_group(self, group: "Group") -> None:
        """Quantize the tensors that share one scale."""
        wanted = {edge: self._wanted(*edge) for edge in group.readers}
        widths = {bits for bits in wanted.values() if bits is not None}
        on_integers = [root for root in group.roots if root not in self._preparing]
        if not widths and not any(_computes(root) for root in on_integers):
            return
        if not widths and group.leaves:
            return  # the logits
        everyone_low = len(widths) == 1 and None not in wanted.values() and not group.leaves
        written = widths.pop() if everyone_low and widths else 8
        first, *others = sorted(group.members, key=lambda node: group.order[node])
        annotate(first, {}, activation_spec(written))
        for member in others:
            annotate(member, {}, SharedQuantizationSpec(first))
        for (member, reader), bits in wanted.items():
            if bits is not None and bits != written:
                annotate(reader, {member: activation_spec(bits)}, None)

    def _wanted(self, tensor: fx.Node, reader: fx.Node) -> int | None:
        """Bits at which ``reader`` wants ``tensor``; None: it runs in float."""
        if reader in self.layers:
            layer = self.layers[reader]
            return layer.inputs if tensor is reader.args[0] else None
        if is_matmul(reader):
            return self.bits.activations
        if reader in self._preparing:
            return None
        if is_binary(reader) or is_average(reader) or is_resize(reader):
            return 8
        return None


@dataclass(frozen=True)
class Group:
    """Tensors that share one scale, because operators between them only move values.

    Attributes:
        members: Nodes that give these tensors.
        roots: Members that compute (or read) values of their own.
        readers: ``(tensor, operator)`` for every operator outside the group that reads it.
        leaves: Whether a member is an output of the graph.
        order: Position of every node in the graph.
    """

    members: list[fx.Node]
    roots: list[fx.Node]
    readers: list[tuple[fx.Node, fx.Node]]
    leaves: bool
    order: dict[fx.Node, int]


def groups(model: fx.GraphModule) -> list[Group]:
    """Every group of tensors that plan `integer` gives one scale, clipped tensors left out.

    A tensor that only feeds a clip owned by its operator is not quantized: the clipped one is.
    """
    order = {node: position for position, node in enumerate(model.graph.nodes)}
    parent = {node: node for node in order if is_tensor(node)}

    def find(node: fx.Node) -> fx.Node:
        while parent[node] is not node:
            node = parent[node]
        return node

    for node in parent:
        if is_pass(node) or is_concat(node):
            for source in pass_inputs(node):
                parent[find(source)] = find(node)
    members: dict[fx.Node, list[fx.Node]] = {}
    for node in parent:
        members.setdefault(find(node), []).append(node)
    found = []
    for nodes in members.values():
        inside = set(nodes)
        roots = [n for n in nodes if not (is_pass(n) or is_concat(n))]
        if all(_is_weight(n) for n in roots) or (len(nodes) == 1 and owns_clip(nodes[0])):
            continue
        readers = [(n, u) for n in nodes for u in n.users if u not in inside and u.op != "output"]
        leaves = any(u.op == "output" for n in nodes for u in n.users)
        found.append(Group(nodes, roots, readers, leaves, order))
    return found


def preparing(model: fx.GraphModule) -> set[fx.Node]:
    """Arithmetic of the image with constants, as in ``(x - mean) / std``, and moves between.

    An integer kernel would round the image before each of these; so it is rounded once, behind.
    """
    found: set[fx.Node] = set()
    node, *behind = behind_images(model)
    while True:
        readers = [user for user in node.users if is_tensor(user)]
        if len(readers) != 1:
            return found
        (reader,) = readers
        once = list(reader.args[:2]).count(node) == 1  # no x + x
        others = {source for source in tensor_inputs(reader) if source is not node}
        arithmetic = name_of(reader) in ARITHMETIC and once and others.isdisjoint(behind)
        if not arithmetic and not is_pass(reader):
            return found
        if arithmetic:
            found.add(reader)
        node = reader


def owns_clip(node: fx.Node) -> bool:
    """Whether the only reader of this computed tensor is a clip, which a runtime fuses into it."""
    users = list(node.users)
    return _computes(node) and len(users) == 1 and is_clip(users[0])


def _computes(node: fx.Node) -> bool:
    """Whether an integer kernel writes this tensor."""
    owner = tensor_inputs(node)[0] if is_clip(node) and tensor_inputs(node) else node
    if owner is not node:
        return owns_clip(owner)
    if is_weighted(node) or is_matmul(node) or is_average(node) or is_resize(node):
        return True
    return is_binary(node) and not all(is_parameter(a) for a in tensor_inputs(node))


def _is_weight(node: fx.Node) -> bool:
    """Whether a parameter is read only as weight, bias or statistic, never as an operand."""
    if not is_parameter(node):
        return False
    return all(
        not (is_binary(u) or is_matmul(u) or is_pass(u) or is_concat(u))
        or (is_weighted(u) and node in (u.args[1], argument(u, 2)))
        for u in node.users
    )


def _reads_quantized(node: fx.Node) -> bool:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    here, there = node.meta[ANNOTATION], source.meta.get(ANNOTATION)
    return source in here.input_qspec_map or (there is not None and there.output_qspec is not None)
