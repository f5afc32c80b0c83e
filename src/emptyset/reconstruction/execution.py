"""How units are run: which are compiled, and in which precision their products are.

Decided once, from the planned work, the bits and the machine, never from a clock, and kept with the
run: compiled and eager code, bfloat16 and float32 round differently, and a run that goes on must
end the same.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emptyset.inversion.compilation import compiled, compiler_found, products_in_bfloat16
from emptyset.monitor import Monitor, State
from emptyset.reconstruction.step import Recipe, Step, Tensors, unit_step

# Bits up to which the error of rounding to bfloat16 drowns in that of quantization.
_COARSE_BITS = 4

# Measured on 2 AVX512 cores with ResNet-20 at batch 32, per thread: what a compiled step saves.
_SAVED_SECONDS_PER_ELEMENT = 8.0e-9
_SAVED_SECONDS_PER_OPERATOR = 1.0e-4
# On CUDA small blocks wait for kernel launches. An estimate, not measured.
_SAVED_SECONDS_PER_OPERATOR_CUDA = 1.0e-4
# Compiling took 10 to 14 s for blocks of two layers.
_COMPILE_SECONDS = 5.0
_COMPILE_SECONDS_PER_LAYER = 4.0
_MARGIN = 1.25


@dataclass(frozen=True)
class Work:
    """What one unit takes.

    Attributes:
        structure: Equal for units that can share one compiled step.
        layers: Convolutions and linears.
        elements: Elements of all activations that are quantized in a batch.
        operators: Calls in its graph.
        steps: Steps planned.
    """

    structure: Hashable
    layers: int
    elements: int
    operators: int
    steps: int


@dataclass(frozen=True)
class Execution:
    """Per unit, in order.

    Attributes:
        compiled: Through ``torch.compile``.
        half: Products in bfloat16.
    """

    compiled: tuple[bool, ...]
    half: tuple[bool, ...]

    def state(self) -> State:
        """To keep with a run."""
        return {"compiled": torch.tensor(self.compiled), "half": torch.tensor(self.half)}

    @staticmethod
    def from_state(state: State) -> "Execution":
        """What an earlier run decided."""
        return Execution(tuple(state["compiled"].tolist()), tuple(state["half"].tolist()))


def in_half(bits: Sequence[int], precision: str, device: torch.device) -> tuple[bool, ...]:
    """For each unit whether its products are in bfloat16.

    Args:
        bits: Fewest bits of a weight or activation in each unit.
        precision: ``auto``, ``float32`` or ``bfloat16``.
        device: Where they run.
    """
    return tuple(
        products_in_bfloat16(precision, fewest, device, coarse_bits=_COARSE_BITS) for fewest in bits
    )


def worth_compiling(works: Sequence[Work], device: torch.device, threads: int) -> tuple[bool, ...]:
    """For each unit whether compiling its step, once for all units like it, saves time.

    Args:
        works: The units that are still to be done.
        device: Where they run.
        threads: Threads that work on one operator (CPU).
    """
    if device.type not in ("cpu", "cuda"):
        return tuple(False for _ in works)
    saved: dict[Hashable, float] = defaultdict(float)
    for work in works:
        if device.type == "cpu":
            step = work.elements * _SAVED_SECONDS_PER_ELEMENT / threads
            step += work.operators * _SAVED_SECONDS_PER_OPERATOR
        else:
            step = work.operators * _SAVED_SECONDS_PER_OPERATOR_CUDA
        saved[work.structure] += work.steps * step
    costs = [_COMPILE_SECONDS + _COMPILE_SECONDS_PER_LAYER * work.layers for work in works]
    return tuple(
        saved[work.structure] > _MARGIN * cost for work, cost in zip(works, costs, strict=True)
    )


class Steps:
    """Makes the steps of units; equal units that are compiled share one."""

    def __init__(self, name: str, monitor: Monitor) -> None:
        self._name, self._monitor = name, monitor
        self._compiled: dict[Hashable, Step] = {}

    def step(self, recipe: Recipe, tensors: Tensors, *, is_compiled: bool) -> Step:
        """The step of a unit.

        Args:
            recipe: What its code depends on.
            tensors: What it will be called with.
            is_compiled: Whether to compile it.
        """
        if not is_compiled:
            return unit_step(recipe)
        key = recipe.key(tensors)
        if key not in self._compiled:
            self._compiled[key] = self._or_eager(recipe, tensors)
        return self._compiled[key]

    def _or_eager(self, recipe: Recipe, tensors: Tensors) -> Step:
        """The compiled step, tried on copies; eager where a compiler fails."""
        eager = unit_step(recipe)
        if not compiler_found(tensors["flat"].device):
            self._say("no C++ compiler found. Install g++ or clang to change that")
            return eager
        try:
            step = compiled_step(eager, tensors)
            step({**tensors, **{name: tensors[name].clone() for name in CHANGED}})
        # Whatever a compiler may raise. An error of the step itself comes again without it.
        except Exception as error:
            self._say(f"torch.compile cannot compile it ({type(error).__name__})")
            return eager
        return step

    def _say(self, why: str) -> None:
        self._monitor.note(
            f"{self._name}: the step runs as it is and takes about twice as long: {why}."
        )


CHANGED = ("flat", "first", "second")


def compiled_step(step: Step, tensors: Tensors) -> Step:
    """The step with its backward and its update as one compiled graph.

    Args:
        step: From ``unit_step``.
        tensors: Of the shapes that it will be called with; not changed.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    names = sorted(tensors)

    def by_position(*values: Tensor) -> Tensor:
        return step(dict(zip(names, values, strict=True)))

    graph: Callable[..., Any] = make_fx(by_position, tracing_mode="fake")(
        *(tensors[name] for name in names)
    )
    run = compiled(graph)

    def call(given: Tensors) -> Tensor:
        with torch.no_grad():
            loss: Tensor = run(*(given[name] for name in names))
        return loss

    return call
