"""Runs the simulation in double precision, compares its codes with the runtime's, node by node."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from emptyset.exporters.simulation import Simulation, is_dequantize, is_quantize
from emptyset.graph.operators import argument, name_of

TIE = 1e-3
# So close to a boundary [codes], single precision cannot tell the sides: a code of up to 255 that a
# few operations gave is off by this much.
ON_BOUNDARY = 2e-5
TIES_ALLOWED = 1e-3
SMALL_NODE = 30_000
TIES_IN_SMALL_NODE = 3


@dataclass
class NodeRecord:
    """What was seen at one quantizer.

    Attributes:
        name: The file's value name.
        operator: What computes the tensor.
        values: Codes compared.
        ties: Codes that differ by one where the exact value is within 1e-3 of a boundary.
        distinct_ties: Those of them that a limit holds for. Not those on the boundary itself, where
            both codes are nearest: means of few codes, and pixels minus a constant, lie there by
            the hundred. Equal exact values are counted once: a 1x1 depthwise convolution gives one
            value for each code of a channel, and a tie of one is a tie of all.
        faults: Other differences.
        worst: Largest difference [codes].
        missing: The file gives no such value.
    """

    name: str
    operator: str
    values: int = 0
    ties: int = 0
    distinct_ties: int = 0
    faults: int = 0
    worst: int = 0
    missing: bool = False

    def fault(self) -> str | None:
        """What is wrong here, or None."""
        if self.missing:
            return f"{self.name} ({self.operator}): the file has no such value"
        if self.faults:
            return (
                f"{self.name} ({self.operator}): {self.faults} of {self.values} codes differ by up "
                f"to {self.worst} and are no rounding ties"
            )
        if self.distinct_ties > self.ties_allowed():
            return f"{self.name} ({self.operator}): {self.ties} of {self.values} codes are ties"
        return None

    def ties_allowed(self) -> float:
        """So many distinct ties may be, without limit for images.

        These are given, not computed, so no error hides behind them; and with mean and deviation
        0.5 every pixel of eight bits lies on a boundary.
        """
        if self.operator == "placeholder":
            return math.inf
        return TIES_IN_SMALL_NODE if self.values < SMALL_NODE else TIES_ALLOWED * self.values


class CodeComparison:
    """Feeds every node with the runtime's codes and counts how its own differ."""

    def __init__(self, simulation: Simulation) -> None:
        self._program = simulation.program
        self._records: dict[str, NodeRecord] = {}

    def compare(self, images: Tensor, runtime: dict[str, Any]) -> Tensor:
        """Compare one batch; ``runtime`` holds the file's codes by value name.

        Returns:
            ``(N, K)`` float64 logits that follow from the runtime's own codes.
        """
        with torch.no_grad():
            logits: Tensor = _Run(self._program, runtime, self._records).run(images.double())
        return logits

    def records(self) -> list[NodeRecord]:
        """One record per quantizer, in order of execution."""
        return list(self._records.values())

    def fault(self) -> str | None:
        """The first node with a fault, described, or None."""
        return next((text for r in self._records.values() if (text := r.fault())), None)


class _Run(fx.Interpreter):
    """The simulation on the runtime's codes, everything real in double precision."""

    def __init__(
        self, program: fx.GraphModule, runtime: dict[str, Any], records: dict[str, NodeRecord]
    ) -> None:
        super().__init__(program)
        self._runtime, self._records = runtime, records

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.detach().double()
        return value

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is torch.ops.aten._assert_tensor_metadata.default:
            return None  # of a cast, in single precision
        args = tuple(_doubled(value) for value in args)
        kwargs = {name: _doubled(value) for name, value in kwargs.items()}
        return super().call_function(target, args, kwargs)

    def run_node(self, node: fx.Node) -> Any:
        if is_quantize(node):
            return self._quantize(node)
        if is_dequantize(node):
            return self._dequantize(node)
        return super().run_node(node)

    def _quantize(self, node: fx.Node) -> Tensor:
        x = self._value(node.args[0])
        scale, zero_point, low, high = (self._value(a) for a in node.args[1:5])
        exact = x / scale + zero_point
        own: Tensor = exact.round().clamp(low, high).to(torch.int64)
        source = node.args[0]
        assert isinstance(source, fx.Node)
        kind = name_of(source) or source.op
        record = self._records.setdefault(node.name, NodeRecord(node.name, kind))
        theirs = self._runtime.get(node.name)
        if theirs is None or tuple(theirs.shape) != tuple(own.shape):
            # A constant that the exporter folded has no node; its values were compared before.
            record.missing = theirs is not None or not _constant(source)
            return own
        codes = torch.from_numpy(np.ascontiguousarray(theirs)).to(torch.int64)
        gap = (codes - own).abs()
        from_boundary = (exact - exact.floor() - 0.5).abs()
        tie = (gap == 1) & (from_boundary < TIE)
        record.values += codes.numel()
        record.ties += int(tie.sum())
        record.distinct_ties += exact[tie & (from_boundary > ON_BOUNDARY)].unique().numel()
        record.faults += int(((gap > 0) & ~tie).sum())
        record.worst = max(record.worst, int(gap.max()))
        return codes

    def _dequantize(self, node: fx.Node) -> Tensor:
        codes, scale, zero_point = (self._value(a) for a in node.args[:3])
        if "per_channel" in str(node.target):
            shape = [1] * codes.dim()
            shape[int(argument(node, 3))] = -1
            scale, zero_point = scale.view(shape), zero_point.view(shape)
        values: Tensor = (codes.double() - zero_point) * scale
        return values

    def _value(self, argument: Any) -> Any:
        value = self.env[argument] if isinstance(argument, fx.Node) else argument
        return value if not isinstance(value, float) else _as_float32(value)


def _as_float32(value: float) -> float:
    """Scales are float32 in the file; a Python float in the graph stands for one."""
    return float(np.float32(value))


def _doubled(value: Any) -> Any:
    """A cast to single precision is one to double here."""
    return torch.float64 if value is torch.float32 else value


def _constant(node: fx.Node) -> bool:
    return node.op == "get_attr" or (
        node.op == "call_function" and all(_constant(a) for a in node.all_input_nodes)
    )
