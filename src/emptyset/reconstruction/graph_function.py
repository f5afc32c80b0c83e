"""A stretch of a student as a function of tensors alone.

Parameters come in as arguments and quantizers as a callable, so that equal blocks are one function:
what is compiled for the first serves the others.
"""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, fx

from emptyset.graph.operators import attribute
from emptyset.graph.products import is_product, product_in
from emptyset.graph.student import Student
from emptyset.quantizers.affine import AffineFakeQuantizer
from emptyset.quantizers.bias import BiasFakeQuantizer

Quantize = Callable[[int, Tensor | None], Tensor]
"""Quantizer number and what it reads (None: a weight that is learnt), to what it gives."""


class GraphFunction:
    """The stretch, and which tensors and quantizers it takes.

    Attributes:
        constants: Path of every parameter that it reads, in the order of the arguments.
        quantizers: Name of every quantizer, in order; the callable is given positions in it.
        structure: Equal for stretches that are the same function.
    """

    def __init__(
        self, student: Student, body: fx.GraphModule, learnt: tuple[str, ...], dtype: torch.dtype
    ) -> None:
        """Take the stretch apart.

        Args:
            student: Whose stretch it is.
            body: Graph module of one input and one output.
            learnt: Names of the weight quantizers whose weight is learnt: they read nothing.
            dtype: Of the products (convolution, linear, matmul); all else is float32.
        """
        self.constants: list[str] = []
        self.quantizers: list[str] = []
        self._student, self._learnt, self._dtype = student, learnt, dtype
        self._graph = fx.Graph()
        self._copied: dict[fx.Node, fx.Node] = {}
        x = self._graph.placeholder("x")
        self._quantize = self._graph.placeholder("quantize")
        self._values = self._graph.placeholder("values")
        for node in body.graph.nodes:
            if node.op == "placeholder":
                self._copied[node] = x
            elif node.op == "output":
                self._graph.output(self._copied[node.args[0]])
            elif node.op == "call_module":
                self._copied[node] = self._quantizer(node)
            elif node.op == "call_function":
                self._copied[node] = self._call(node)
        self._graph.eliminate_dead_code()
        self._module = fx.GraphModule(torch.nn.Module(), self._graph)
        self.structure: Hashable = (_structure(self._graph), str(dtype))

    def __call__(self, x: Tensor, quantize: Quantize, values: list[Tensor]) -> Tensor:
        """Output of the stretch.

        Args:
            x: Its input.
            quantize: What its quantizers compute. A bias that is rounded to whole steps of input
                times weight is asked for by ``step_of``.
            values: The constants.
        """
        out: Tensor = self._module(x, quantize, values)
        return out

    def constant_values(self) -> list[Tensor]:
        """The constants as the student has them now, copied."""
        return [attribute(self._student.program, p).detach().clone() for p in self.constants]

    # Construction ----------------------------------------------------------------------------

    def _value(self, node: fx.Node) -> fx.Node:
        """A node for what ``node`` stands for; a parameter becomes an argument when it is read."""
        if node in self._copied:
            return self._copied[node]
        assert node.op == "get_attr"
        path = str(node.target)
        if path not in self.constants:
            self.constants.append(path)
        position = self.constants.index(path)
        self._copied[node] = self._graph.call_function(_item, (self._values, position))
        return self._copied[node]

    def _number(self, quantizer: AffineFakeQuantizer) -> int:
        if quantizer.name not in self.quantizers:
            self.quantizers.append(quantizer.name)
        return self.quantizers.index(quantizer.name)

    def _quantizer(self, node: fx.Node) -> fx.Node:
        module, source = self._student.program.get_submodule(str(node.target)), node.args[0]
        assert isinstance(source, fx.Node)
        if isinstance(module, BiasFakeQuantizer):
            numbers = tuple(self._number(owner) for owner in module.owners)
            arguments: tuple[fx.node.Argument, ...] = (
                self._quantize, *numbers, self._value(source),
            )  # fmt: skip
            return self._graph.call_function(_rounded_bias, arguments)
        assert isinstance(module, AffineFakeQuantizer)
        read = None if module.name in self._learnt else self._value(source)
        arguments = (self._quantize, self._number(module), read)
        return self._graph.call_function(_quantized, arguments)

    def _call(self, node: fx.Node) -> fx.Node:
        args = fx.node.map_arg(node.args, self._value)
        kwargs = fx.node.map_arg(node.kwargs, self._value)
        if self._dtype != torch.float32 and is_product(node):
            target: Any = node.target
            return self._graph.call_function(product_in, (self._dtype, target, *args), dict(kwargs))
        return self._graph.call_function(node.target, args, dict(kwargs))  # type: ignore[arg-type]


def _item(values: list[Tensor], position: int) -> Tensor:
    return values[position]


def _quantized(quantize: Quantize, number: int, x: Tensor | None) -> Tensor:
    return quantize(number, x)


def _rounded_bias(quantize: Any, inputs: int, weight: int, bias: Tensor) -> Tensor:
    rounded: Tensor = quantize.rounded_bias(inputs, weight, bias)
    return rounded


def _structure(graph: fx.Graph) -> Hashable:
    """Operators, arguments and their connections, without names."""
    position = {node: number for number, node in enumerate(graph.nodes)}

    def told(value: Any) -> str:
        return f"%{position[value]}" if isinstance(value, fx.Node) else repr(value)

    lines = []
    for node in graph.nodes:
        parts = [told(leaf) for leaf in _leaves((node.args, node.kwargs))]
        lines.append((node.op, str(node.target) if node.op == "call_function" else "", *parts))
    return tuple(lines)


def _leaves(value: Any) -> list[Any]:
    """What a nest of tuples, lists and dictionaries holds, with marks that keep the nesting."""
    if isinstance(value, (tuple, list)):
        return ["(", *(leaf for item in value for leaf in _leaves(item)), ")"]
    if isinstance(value, dict):
        return ["{", *(leaf for k in value for leaf in (k, *_leaves(value[k]))), "}"]
    if isinstance(value, slice):
        return ["slice", value.start, value.stop, value.step]
    return [value]
