"""What the operators of a captured graph mean to quantization.

A captured graph holds aten operators. Everything here is keyed by the operator's name without its
overload, for example ``aten.conv2d``; an operator that is in no group is *opaque*: it runs in
float.
"""

import operator
from typing import Any, TypeGuard

import torch
from torch.fx import GraphModule, Node

WEIGHTED = {"conv1d", "conv2d", "conv3d", "linear", "conv_transpose2d"}
MATMUL = {"matmul", "bmm", "mm"}
BINARY = {"add", "mul", "sub"}
AVERAGE = {"avg_pool2d", "adaptive_avg_pool2d", "mean"}
RESIZE = {"upsample_bilinear2d", "upsample_bicubic2d", "grid_sampler"}
CLIP = {"relu", "relu6", "hardtanh", "clamp", "clamp_min"}
# Values are moved, repeated or selected, never computed: input and output share one scale.
PASS = {
    "view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute",
    "transpose", "t", "slice", "select", "expand", "contiguous", "clone", "roll", "max_pool2d",
    "adaptive_max_pool2d", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "repeat", "index",
    "upsample_nearest2d", "alias", "narrow", "movedim", "flip", "to",
}  # fmt: skip


def name_of(node: Node) -> str:
    """``conv2d`` for a call of ``aten.conv2d.default``; empty for anything that is no aten call."""
    if node.op != "call_function":
        return ""
    if isinstance(node.target, torch._ops.OpOverload):
        packet = node.target._schema.name
        return packet.split("::")[1] if packet.startswith("aten::") else ""
    return ""


def is_tensor(node: Any) -> TypeGuard[Node]:
    """Whether the node gives one tensor of floating point."""
    if not isinstance(node, Node):
        return False
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def tensor_inputs(node: Node) -> list[Node]:
    """Floating-point tensors that the node reads, in order, each once."""
    return [source for source in node.all_input_nodes if is_tensor(source)]


def is_weighted(node: Node) -> bool:
    """Convolution or linear with a weight that is a parameter."""
    return name_of(node) in WEIGHTED and parameter_of(node.args[1]) is not None


def parameter_of(node: Any) -> Node | None:
    """The parameter that a value comes from, past fake quantizers; None where it is computed."""
    while isinstance(node, Node) and node.op == "call_module":
        node = node.args[0]
    return node if is_parameter(node) else None


def is_matmul(node: Node) -> bool:
    """Product of two computed tensors, or a functional linear/conv whose weight is computed."""
    return name_of(node) in MATMUL


def is_parameter(node: Any) -> TypeGuard[Node]:
    """Whether the node reads a parameter or a buffer."""
    return isinstance(node, Node) and node.op == "get_attr"


def is_binary(node: Node) -> bool:
    """Addition, subtraction or product of two tensors (not of a tensor and a number)."""
    return name_of(node) in BINARY and len([a for a in node.args[:2] if is_tensor(a)]) == 2


def is_average(node: Node) -> bool:
    """Average over positions of the image."""
    return name_of(node) in AVERAGE and is_tensor(node)


def is_resize(node: Node) -> bool:
    """Interpolation that computes new values."""
    return name_of(node) in RESIZE


def is_clip(node: Node) -> bool:
    """ReLU, ReLU6 or another clip with constant bounds."""
    return name_of(node) in CLIP and clip_bounds(node) is not None


def clip_bounds(node: Node) -> tuple[float, float] | None:
    """Lower and upper bound of a clip; None where a bound is computed."""
    kind, infinity = name_of(node), float("inf")
    if kind == "relu":
        return 0.0, infinity
    if kind == "relu6":
        return 0.0, 6.0
    bounds: list[Any] = [*node.args[1:3]]
    if kind == "hardtanh":
        defaults: list[Any] = [-1.0, 1.0]
    else:
        defaults = [None, None]
    bounds += defaults[len(bounds) :]
    for position, key in enumerate(
        ("min", "max") if kind != "hardtanh" else ("min_val", "max_val")
    ):
        bounds[position] = node.kwargs.get(key, bounds[position])
    if any(isinstance(bound, Node) for bound in bounds):
        return None
    low, high = bounds
    return -infinity if low is None else float(low), infinity if high is None else float(high)


def is_concat(node: Node) -> bool:
    """Concatenation."""
    return name_of(node) in {"cat", "concat"}


def is_pass(node: Node) -> bool:
    """An operator whose output holds nothing but values (or zeros) of its first input."""
    kind = name_of(node)
    if kind in {"pad", "constant_pad_nd"}:
        mode = node.args[2] if kind == "pad" and len(node.args) > 2 else "constant"
        position = 3 if kind == "pad" else 2
        value = node.args[position] if len(node.args) > position else node.kwargs.get("value")
        # Reflection and replication move values too; a constant must have an exact code.
        return mode != "constant" or value in (None, 0, 0.0)
    return kind in PASS and is_tensor(node) and bool(node.args) and is_tensor(node.args[0])


def hands_on(node: Any) -> TypeGuard[Node]:
    """The same where no shapes are known: behind fake quantizers, and in converted programs."""
    return isinstance(node, Node) and (is_pass(node) or name_of(node) in PASS)


def origin_of(value: Any) -> Any:
    """What gives a value that is only handed on: past padding, pools, reshapes and the like."""
    while hands_on(value):
        value = pass_inputs(value)[0]
    return value


def pass_inputs(node: Node) -> list[Node]:
    """The tensors whose values a pass operator or a concatenation hands on."""
    if is_concat(node):
        return [source for source in node.args[0] if is_tensor(source)]  # type: ignore[union-attr]
    return [node.args[0]]  # type: ignore[list-item]


def weight_axis(node: Node) -> int:
    """Output-channel axis of the weight of a convolution or linear."""
    return 1 if name_of(node) == "conv_transpose2d" else 0


def one_scale_per_output(node: Node) -> bool:
    """Whether weight scales and biases match one to one (not so where transposed and grouped)."""
    return _transposed_groups(node) == 1


def bias_has_steps(node: Node) -> bool:
    """Whether a runtime can hold this layer's bias as int32 with the scale of input times weight.

    Of a transposed convolution in groups every weight scale stands for one output of each group.
    Only where that is all of them (one output a group, one scale) the runtime rounds the bias.
    """
    return one_scale_per_output(node) or is_depthwise_transposed(node)


def is_depthwise_transposed(node: Node) -> bool:
    """Whether a transposed convolution has one output a group: one weight scale serves them all."""
    groups = _transposed_groups(node)
    return groups > 1 and groups == node.meta["val"].shape[1]


def _transposed_groups(node: Node) -> int:
    """Groups of a transposed convolution; 1 of every other layer, whose scales they do not bind."""
    return int(argument(node, 6) or 1) if name_of(node) == "conv_transpose2d" else 1


def argument(node: Node, position: int) -> Any:
    """Positional argument, or None where it was left out."""
    return node.args[position] if len(node.args) > position else None


def attribute(module: torch.nn.Module, path: str) -> Any:
    """The parameter, buffer or submodule at a dotted path."""
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part)
    return found


def module_path(node: Node) -> str:
    """Path of the module that the operator came from, for example ``layer1.0.conv1``."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    path = paths[-1] if paths else ""
    return str(path).removeprefix("L['self'].").removeprefix("L['self']").strip(".")


def layer_path(node: Node) -> str:
    """Path of a weighted layer: its weight's path without ``.weight``."""
    weight = parameter_of(node.args[1])
    assert weight is not None
    return str(weight.target).removesuffix(".weight")


def weighted_layers(graph_module: GraphModule) -> list[Node]:
    """Every convolution and linear with a parameter as its weight, in order of execution."""
    return [node for node in graph_module.graph.nodes if is_weighted(node)]


def behind_images(graph_module: GraphModule) -> list[Node]:
    """The images, and every node whose value depends on them, in order of execution."""
    found: dict[Node, None] = {}
    for node in graph_module.graph.nodes:
        if node.op == "placeholder" or not found.keys().isdisjoint(node.all_input_nodes):
            found[node] = None
    return list(found)


def is_getitem(node: Node) -> bool:
    """Whether the node picks one output of an operator that has several."""
    return node.op == "call_function" and node.target is operator.getitem
