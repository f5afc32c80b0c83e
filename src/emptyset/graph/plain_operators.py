"""Operators that a captured graph may hold, written with those that plans and runtimes know.

Each rewriting computes the same values.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher

from emptyset.errors import CaptureError
from emptyset.graph.nodes import call, rewrite
from emptyset.graph.operators import argument, is_tensor, name_of

ATEN = torch.ops.aten


def plain_operators(graph_module: fx.GraphModule) -> int:
    """Rewrite every operator that has a plainer form, in place; gives how many there were.

    Raises:
        CaptureError: If part of the network computes in another precision than its images have.
    """
    graph = graph_module.graph
    for node in list(graph.nodes):
        if name_of(node) == "_assert_tensor_metadata":
            # It says of a cast what type torch saw before it; whoever runs the graph decides that.
            graph.erase_node(node)
    changed = rewrite(graph, _plainer)
    _one_precision(graph)
    return changed


def _plainer(node: fx.Node) -> fx.Node | None:
    made = PLAIN.get(name_of(node))
    return None if made is None else made(node)


def _one_precision(graph: fx.Graph) -> None:
    """Quantizers take and give what the images are; a part in double or half has no place."""
    image = next(node for node in graph.nodes if node.op == "placeholder")
    dtype, computed = image.meta["val"].dtype, {image}
    for node in graph.nodes:
        value = node.meta.get("val")
        # The number of images is no value of theirs.
        if isinstance(value, torch.SymInt) or computed.isdisjoint(node.all_input_nodes):
            continue
        computed.add(node)
        if is_tensor(node) and value.dtype != dtype:
            lines = (node.meta.get("stack_trace") or "").strip().splitlines()
            where = "".join(f"\n  {line.strip()}" for line in lines[-2:])
            raise CaptureError(
                f"{node.name}: '{name_of(node) or node.target}' gives {value.dtype}, but the "
                f"images are {dtype}.{where}\nA student computes in one precision. Leave out the "
                "cast (`.double()`, `.half()`, `.to(dtype)`, `dtype=`), or pass a wrapper module "
                "without it."
            )


def _cast(node: fx.Node) -> fx.Node | None:
    """A cast to the type that the tensor has, on its device, hands its input on."""
    source, target = node.args[0], node.target
    assert isinstance(source, fx.Node)
    assert isinstance(target, torch._ops.OpOverload)
    names = [argument.name for argument in target._schema.arguments]
    if (dict(zip(names, node.args, strict=False)) | node.kwargs).get("copy"):
        return None
    before, after = source.meta["val"], node.meta["val"]
    same = before.dtype == after.dtype and before.device == after.device
    return source if same else None


def _clamp(node: fx.Node) -> fx.Node:
    """``clip`` is another name of ``clamp``, which the exporter knows."""
    target: Any = node.target
    new = call(node.graph, getattr(ATEN.clamp, target._overloadname), node.args, node)
    new.kwargs = dict(node.kwargs)
    return new


def _leaky_relu(node: fx.Node) -> fx.Node | None:
    """``rrelu`` outside training has the slope in the middle."""
    low, high = (argument(node, position) for position in (1, 2))
    if argument(node, 3):
        return None
    slope = ((1 / 8 if low is None else low) + (1 / 3 if high is None else high)) / 2
    return call(node.graph, ATEN.leaky_relu.default, (node.args[0], slope), node)


def _average_pool(node: fx.Node) -> fx.Node | None:
    """A pool whose windows hang over the end, or with a divisor of its own, in plain terms.

    torch counts the padding and leaves out what hangs over; ONNX Runtime's integer kernel counts
    both or neither. The exporter does not write a divisor.
    """
    source: Any = node.args[0]
    after, divisor = node.meta["val"].shape, argument(node, 6)
    ceil, include = bool(argument(node, 4)), argument(node, 5) in (None, True)
    if divisor is None and not ceil:
        return None
    dims = int(name_of(node)[-2])
    kernel = _each(argument(node, 1), dims)
    stride = _each(argument(node, 2) or kernel, dims)
    padding = _each(argument(node, 3) or 0, dims)
    sizes, counts = source.meta["val"].shape[-dims:], after[-dims:]
    if divisor is None:
        # The only window of an axis, larger than the image, is the image.
        kernel = [
            min(width, size) if (count, around) == (1, 0) else width
            for width, size, count, around in zip(kernel, sizes, counts, padding, strict=True)
        ]
    # Where the last window ends, counted from the last value.
    ends = [
        (count - 1) * step + width - size - around
        for count, step, width, size, around in zip(
            counts, stride, kernel, sizes, padding, strict=True
        )
    ]
    hangs = [end > around for end, around in zip(ends, padding, strict=True)]
    if divisor is not None:
        if any(hangs):
            source = _padded(node, source, list(zip(padding, ends, strict=True)))
            padding = [0] * dims
        ceil, include = False, True
    elif not any(hangs):
        ceil = False
    elif not include:
        return None
    else:
        if any(padding):
            behind = [min(pair) for pair in zip(ends, padding, strict=True)]
            source = _padded(node, source, list(zip(padding, behind, strict=True)))
            padding = [0] * dims
        include = False
    target: Any = node.target
    whole = call(node.graph, target, (source, kernel, stride, padding, ceil, include), node)
    if divisor is None:
        return whole
    return call(node.graph, ATEN.mul.Tensor, (whole, math.prod(kernel) / divisor), node)


def _convolution(node: fx.Node) -> fx.Node | None:
    """Padding "valid" and "same" in numbers; where "same" is uneven, a pad gives the odd zero.

    The exporter gives convolutions with a padding in words names of its own.
    """
    target: Any = node.target
    if target._overloadname != "padding":
        return None
    source, weight = node.args[:2]
    bias, groups = argument(node, 2), argument(node, 6) or 1
    dims = weight.meta["val"].dim() - 2  # type: ignore[union-attr]
    stride, dilation = (_each(argument(node, position) or 1, dims) for position in (3, 5))
    padding = [0] * dims
    if argument(node, 4) == "same":
        kernel = weight.meta["val"].shape[2:]  # type: ignore[union-attr]
        around = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        padding = [total // 2 for total in around]
        # torch puts the odd zero behind.
        source = _padded(node, source, [(0, total % 2) for total in around])
    arguments = (source, weight, bias, stride, padding, dilation, groups)
    return call(node.graph, getattr(ATEN, name_of(node)).default, arguments, node)


def _padded(node: fx.Node, source: Any, ends: list[tuple[int, int]]) -> Any:
    """``source`` with zeros before and behind each of its last axes; negative: values cut off."""
    if not any(end for pair in ends for end in pair):
        return source
    # The operator counts axes from the last.
    widths = [end for pair in reversed(ends) for end in pair]
    # Asked without its Python form, the pad would fix the number of images.
    with enable_python_dispatcher():
        return call(node.graph, ATEN.pad.default, (source, widths), node)


def _each(value: Any, dims: int) -> list[int]:
    """One number per axis, of one for all or of a list."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values * dims if len(values) == 1 else values


PLAIN: dict[str, Callable[[fx.Node], fx.Node | None]] = {
    "conv1d": _convolution,
    "conv2d": _convolution,
    "conv3d": _convolution,
    "to": _cast,
    "_to_copy": _cast,
    "type_as": _cast,
    "clip": _clamp,
    "rrelu": _leaky_relu,
    "avg_pool1d": _average_pool,
    "avg_pool2d": _average_pool,
    "avg_pool3d": _average_pool,
}
