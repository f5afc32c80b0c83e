"""Precision and compilation of the engine's inner function: decided once, from the plan.

The decision depends only on the planned work and the machine, never on a clock, and is kept with
the run: compiled and eager code round differently, and a resumed run must give the same images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import ParamSpec, TypeVar

import torch

from emptyset.monitor import State

PRECISIONS = ("auto", "float32", "bfloat16")

# Measured on 2 AVX512 cores (3.1 GHz) with ResNet-20, per thread: eager takes 9.4 ns (bfloat16)
# and 12.7 ns (float32) per element of a BatchNorm input and step, compiled 6.2 and 9.7 ns.
_SAVED_SECONDS_PER_ELEMENT = 3.0e-9
# Compiling took 13 to 36 s for 19 layers.
_COMPILE_SECONDS = 3.0
_COMPILE_SECONDS_PER_LAYER = 1.0
# On CUDA small networks wait for kernel launches. An estimate, not measured: about twenty fewer
# launches of 5 microseconds per layer and step.
_SAVED_SECONDS_PER_LAYER_CUDA = 1.0e-4
_MARGIN = 1.25

_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Execution:
    """How the teacher is run.

    Attributes:
        compiled: Through ``torch.compile``.
        dtype: Precision of the teacher's convolutions; statistics and losses are float32.
    """

    compiled: bool
    dtype: torch.dtype

    def state(self) -> State:
        """To keep with a run."""
        half = self.dtype == torch.bfloat16
        return {"compiled": torch.tensor(self.compiled), "bfloat16": torch.tensor(half)}

    @staticmethod
    def from_state(state: State) -> "Execution":
        """What an earlier run decided."""
        dtype = torch.bfloat16 if bool(state["bfloat16"]) else torch.float32
        return Execution(bool(state["compiled"]), dtype)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster; elsewhere they would only cost precision.

    On a processor that takes AMX: with the AVX512 instruction alone a core of an Emerald Rapids did
    88 billion operations a second in bfloat16 and 145 to 160 in float32.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_amx_tile_supported())
    return False


def products_in_bfloat16(
    precision: str, bits: int, device: torch.device, *, coarse_bits: int
) -> bool:
    """Whether a quantized network's products are in bfloat16 while it learns.

    Args:
        precision: One of ``PRECISIONS``.
        bits: Fewest bits of a weight or activation.
        device: Where it runs.
        coarse_bits: Up to so many bits ``auto`` takes bfloat16, where the hardware is faster so:
            there its rounding drowns in that of quantization.
    """
    if precision != "auto":
        return precision == "bfloat16"
    return bits <= coarse_bits and has_fast_bfloat16(device)


def worth_compiling(
    device: torch.device,
    *,
    elements: int,
    layers: int,
    steps: int,
    threads: int,
    saved_seconds_per_element: float = _SAVED_SECONDS_PER_ELEMENT,
) -> bool:
    """Whether the time that compiled steps save exceeds the time that compiling takes.

    Args:
        device: Where the teacher is.
        elements: Elements of all BatchNorm inputs (or quantized activations) of one batch.
        layers: Number of these tensors.
        steps: Steps planned, over all batches.
        threads: Threads that work on one operator (CPU).
        saved_seconds_per_element: What one thread saves per element and step.
    """
    cost = _COMPILE_SECONDS + _COMPILE_SECONDS_PER_LAYER * layers
    if device.type == "cpu":
        saved = steps * elements * saved_seconds_per_element / threads
    elif device.type == "cuda":
        saved = steps * layers * _SAVED_SECONDS_PER_LAYER_CUDA
    else:
        return False
    return saved > _MARGIN * cost


def compiler_found(device: torch.device) -> bool:
    """Whether ``torch.compile`` finds what it needs to build its kernels."""
    if device.type != "cpu":
        from torch.utils._triton import has_triton

        return has_triton()
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError, OSError):
        return False
    return True


def compiled(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """``torch.compile`` with a cache of its own, which is freed with what this returns.

    Compiled code is cached with the code object of a function, and eight entries are the most that
    one may have: without a code object of its own, the ninth run in one process would silently
    run eagerly, and the first eight would never be freed.
    """

    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        return function(*args, **kwargs)

    own = FunctionType(
        call.__code__.replace(), call.__globals__, call.__name__, None, call.__closure__
    )
    done: Callable[_P, _R] = torch.compile(own, dynamic=False)
    return done
