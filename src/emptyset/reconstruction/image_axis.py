"""What passes from one unit to the next has one entry per image, along its first axis.

Inputs and targets are kept and drawn by image. Where another axis counts the images (transformers
that put the sequence first do so), it comes first in between. Where no axis does (windows or
patches stand in the place of images), there is no cut: blocks are joined, and layers learnt
together, up to the next tensor that counts images.
"""

import operator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from emptyset.errors import CaptureError, UnsupportedModelError
from emptyset.graph.blocks import Block, find_blocks
from emptyset.graph.memory import size_for
from emptyset.graph.student import Student

ATEN = torch.ops.aten
# Under this key a block's input tells the value that it is given, where it has none of its own.
STANDS_FOR = "stands_for"
# Integers that a block computes from the shape of its input.
_SIZES = (ATEN.sym_size.int, operator.floordiv, operator.mul)


def blocks_by_image(student: Student) -> list[Block]:
    """The student's chain of blocks, cut only where a tensor counts images; these come first.

    Raises:
        CaptureError: If the network's output does not count images, or a block's shapes cannot be
            computed from its own input.
        UnsupportedModelError: If the network has no layer with weights.
    """
    blocks: list[Block] = []
    waiting: Block | None = None
    given: Tensor | None = None
    for block in find_blocks(student):
        if given is not None:
            input_of(block.module).meta.setdefault(STANDS_FOR, given)
        given = _value(output_of(block.module))
        waiting = block if waiting is None else _joined(student, waiting, block)
        if images_axis(output_of(waiting.module)) is not None:
            blocks.append(_images_first(waiting))
            waiting = None
    if not blocks and waiting is None:
        raise UnsupportedModelError(
            f"{student.teacher.name}: expected at least one convolution or linear whose weights "
            "are parameters, found none, so there is nothing that reconstruction could learn. "
            "Refiner 'calibrate' is enough for this network."
        )
    if waiting is not None:
        shape = shape_of(output_of(waiting.module), 2)
        raise CaptureError(
            f"block '{waiting.name}': what it gives has no axis along which images are counted "
            f"(its shape for 2 images is {shape}), so it cannot be learnt image by image. Wrap the "
            "network in a module that gives logits (N, K) of N images."
        )
    return blocks


def input_of(module: fx.GraphModule) -> fx.Node:
    """What a block reads."""
    (placeholder,) = (node for node in module.graph.nodes if node.op == "placeholder")
    assert isinstance(placeholder, fx.Node)
    return placeholder


def output_of(module: fx.GraphModule) -> fx.Node:
    """The node whose value a block gives."""
    given = module.graph.output_node().args[0]
    assert isinstance(given, fx.Node)
    return given


def images_axis(node: fx.Node) -> int | None:
    """The axis that has one entry per image, or None; 0 of a block's input of unknown shape."""
    two, three = (shape_of(node, images) for images in (2, 3))
    if two is None or three is None:
        return 0 if node.op == "placeholder" else None
    counting = (axis for axis, sizes in enumerate(zip(two, three, strict=True)) if sizes == (2, 3))
    return next(counting, None)


def shape_of(node: fx.Node, images: int) -> tuple[int, ...] | None:
    """Shape of the node's tensor for so many images; None where it is not known."""
    value = _value(node)
    return None if value is None else tuple(size_for(size, images) for size in value.shape)


def gates(first: fx.Node, last: fx.Node) -> list[fx.Node]:
    """The nodes that everything passes through on its way from one node to another, both included.

    Args:
        first: A node of a block.
        last: One that depends on it.
    """
    behind, before = {first}, {last}
    nodes = list(first.graph.nodes)
    for node in nodes:
        if not is_size(node) and any(source in behind for source in node.all_input_nodes):
            behind.add(node)
    for node in reversed(nodes):
        if any(user in before for user in node.users if not is_size(user)):
            before.add(node)
    passed = [node for node in nodes if node in behind and node in before]
    position = {node: number for number, node in enumerate(passed)}
    found, reach = [], 0
    for number, node in enumerate(passed):
        found.extend([node] if reach <= number else [])
        reach = max([reach, *(position[user] for user in node.users if user in position)])
    return found


def between(source: fx.Node, end: fx.Node, *, sizes: bool = False) -> list[fx.Node]:
    """What is computed between two nodes, in order; with ``sizes`` what sizes follow from, too."""
    needed, waiting = set(), [end]
    while waiting:
        node = waiting.pop()
        if node in needed or node is source:
            continue
        needed.add(node)
        if sizes or not is_size(node):
            waiting.extend(node.all_input_nodes)
    return [node for node in end.graph.nodes if node in needed]


def stretch(module: fx.GraphModule, source: fx.Node | None, end: fx.Node) -> fx.GraphModule:
    """The part of a block between two of its nodes, images first at both; parameters stay shared.

    Args:
        module: The block.
        source: Where it starts; everything that ``end`` needs passes through it. None: where the
            block starts.
        end: Whose value it gives.

    Raises:
        CaptureError: If a size inside is no multiple of the number of images.
    """
    whole = input_of(module)
    source = source or whole
    graph = fx.Graph()
    start = graph.placeholder("x")
    start.meta = dict(source.meta)
    copied: dict[fx.Node, Any] = {source: start}
    axis, value = images_axis(source), _value(source)
    if axis and value is not None:
        order = _front(axis, value.dim())
        start.meta["val"] = value.permute(order)
        copied[source] = _permuted(start, [order.index(place) for place in range(value.dim())])
    for node in between(source, end, sizes=source is whole):
        if is_size(node) and source is not whole:
            copied[node] = _multiple_of_images(start, node)
        else:
            copied[node] = graph.node_copy(node, lambda n: copied[n])
    given, axis, value = copied[end], images_axis(end), _value(end)
    if axis and value is not None:
        given.meta.setdefault("val", value)
        given = _permuted(given, _front(axis, value.dim()))
    graph.output(given)
    return fx.GraphModule(module, graph)


def is_size(node: fx.Node) -> bool:
    """Whether the node gives an integer of a shape."""
    if node.op != "call_function":
        return False
    if "val" in node.meta:
        return isinstance(node.meta["val"], (int, torch.SymInt))
    return node.target in _SIZES


def _images_first(block: Block) -> Block:
    """The block as a function of tensors that count images along their first axis."""
    start, end = input_of(block.module), output_of(block.module)
    if images_axis(start) == 0 and images_axis(end) == 0:
        return block
    return replace(block, module=stretch(block.module, start, end))


def _joined(student: Student, first: Block, second: Block) -> Block:
    """Two blocks, one behind the other, as one."""
    graph = fx.Graph()
    copied: dict[fx.Node, Any] = {}
    for block in (first, second):
        if copied:
            copied[input_of(second.module)] = copied[output_of(first.module)]
        for node in block.module.graph.nodes:
            if node.op != "output" and node not in copied:
                copied[node] = graph.node_copy(node, lambda n: copied[n])
    graph.output(copied[output_of(second.module)])
    return Block(
        f"{first.layers[0]} .. {second.layers[-1]}",
        fx.GraphModule(student.program, graph),
        (*first.layers, *second.layers),
        (*first.quantizers, *second.quantizers),
    )


def _front(axis: int, rank: int) -> list[int]:
    """The order of axes with this one first."""
    return [axis, *(other for other in range(rank) if other != axis)]


def _permuted(node: fx.Node, order: list[int]) -> fx.Node:
    moved = node.graph.call_function(ATEN.permute.default, (node, order))
    moved.meta = {"val": node.meta["val"].permute(order)}
    return moved


def _multiple_of_images(start: fx.Node, node: fx.Node) -> Any:
    """What gives an integer of a shape, from the number of images alone."""
    two, three = (_size_of(node, images) for images in (2, 3))
    if two == three:
        return two
    if two is None or three is None or two * 3 != three * 2 or two % 2:
        raise CaptureError(f"The size {node.name} is no multiple of the number of images.")
    images = start.graph.call_function(ATEN.sym_size.int, (start, 0))
    return images if two == 2 else start.graph.call_function(operator.mul, (images, two // 2))


def _size_of(node: fx.Node, images: int) -> int | None:
    """The integer that a node gives for so many images; None where it is not known."""
    if "val" in node.meta:
        return size_for(node.meta["val"], images)
    if node.target is ATEN.sym_size.int:
        source, axis = node.args
        assert isinstance(source, fx.Node)
        assert isinstance(axis, int)
        shape = shape_of(source, images)
        return None if shape is None else shape[axis]
    numbers = [_size_of(a, images) if isinstance(a, fx.Node) else a for a in node.args]
    if None in numbers:
        return None
    computed: int = node.target(*numbers)  # type: ignore[operator]
    return computed


def _value(node: fx.Node) -> Tensor | None:
    """Fake value of a node; a fake quantizer gives what it reads."""
    while node.op == "call_module":
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node = source
    value = node.meta.get("val", node.meta.get(STANDS_FOR))
    return value if isinstance(value, Tensor) else None
