"""What one image costs a network: products and values, counted in one forward."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from emptyset.teachers.teacher import Teacher

_EXAMPLES = 2


@dataclass(frozen=True)
class NetworkCost:
    """Of one image in one forward.

    Attributes:
        products: Products of a weight (or, in attention, of a value) and a value.
        values: Values that convolutions, linears and attention give.
        depthwise: Whether a convolution reads every channel by itself.
        device: Where it runs: ``cpu``, ``cuda`` or ``mps``.
        batch_norm: Whether BatchNorm layers stored statistics.
    """

    products: int
    values: int
    depthwise: bool
    device: str
    batch_norm: bool = True


@torch.no_grad()
def cost_of(teacher: Teacher) -> NetworkCost:
    """Count what one image costs.

    Args:
        teacher: The network; it is shown two images of zeros.
    """
    with _Counting() as counted:
        teacher.module(teacher.example(_EXAMPLES))
    return NetworkCost(
        products=counted.products // _EXAMPLES,
        values=counted.values // _EXAMPLES,
        depthwise=counted.depthwise,
        device=teacher.example(1).device.type,
        batch_norm=bool(teacher.stored_batch_norms()),
    )


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what every operator that multiplies does, and passes it on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products = self.values = 0
        self.depthwise = False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "convolution":
            self._convolution(args[0], args[1], out, transposed=bool(args[6]), groups=int(args[8]))
        elif name in ("mm", "bmm"):
            self._add(out, args[0].shape[-1])
        elif name in ("addmm", "baddbmm"):
            self._add(out, args[1].shape[-1])
        elif name.startswith("_scaled_dot_product"):
            queries, keys, values = args[:3]
            each = queries.shape[-1] + values.shape[-1]
            self._add(out[0] if isinstance(out, tuple) else out, 0)
            self.products += math.prod(queries.shape[:-1]) * keys.shape[-2] * each
        return out

    def _convolution(
        self, x: Tensor, weight: Tensor, out: Tensor, *, transposed: bool, groups: int
    ) -> None:
        each = math.prod(weight.shape[1:])
        if transposed:
            self.values += out.numel()
            self.products += x.numel() * each
        else:
            self._add(out, each)
        self.depthwise |= 1 < groups == x.shape[1]

    def _add(self, out: Tensor, products_each: int) -> None:
        self.values += out.numel()
        self.products += out.numel() * products_each
