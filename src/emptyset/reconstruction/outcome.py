"""What a unit learnt, written into the student and read back from it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from emptyset.graph.bias_range import keep_biases_in_int32
from emptyset.graph.operators import attribute
from emptyset.graph.student import Student
from emptyset.monitor import State
from emptyset.reconstruction.units import Unit, weight_paths


@contextmanager
def switched(student: Student, *, activations: bool) -> Iterator[None]:
    """Inside, weights are quantized, and activations where asked for."""
    before = {name: quantizer.enabled for name, quantizer in student.quantizers.items()}
    try:
        for quantizer in student.quantizers.values():
            quantizer.enabled = activations or quantizer.axis is not None
        yield
    finally:
        for name, quantizer in student.quantizers.items():
            quantizer.enabled = before[name]


@torch.no_grad()
def install(student: Student, outcome: Mapping[str, Tensor]) -> None:
    """Give the student scales and rounding; originals are kept for float mode.

    The weight parameter becomes the value that its codes stand for, so quantizing it gives these
    codes: what is exported is what was learnt.

    Args:
        student: Changed in place.
        outcome: From ``Learnables.outcome``: ``name|scale``, ``name|zero_point`` and, of weights,
            ``name|base_codes`` and ``name|rounding``.
    """
    paths = weight_paths(student)
    names = list(dict.fromkeys(key.rpartition("|")[0] for key in outcome if "|" in key))
    for name in names:
        student.quantizers[name].set_parameters(
            outcome[f"{name}|scale"], outcome[f"{name}|zero_point"]
        )
        if f"{name}|rounding" not in outcome:
            continue
        weight = attribute(student.program, paths[name])
        student.originals.setdefault(paths[name], weight.detach().clone())
        weight.copy_(
            student.quantizers[name].set_rounding(
                outcome[f"{name}|base_codes"], outcome[f"{name}|rounding"]
            )
        )
    settle_biases(student)


@torch.no_grad()
def settle_biases(student: Student) -> None:
    """Raise weight scales where a bias would not fit into int32 otherwise (plan `integer`).

    Codes of the channels that were raised are rounded anew; learnt rounding of the others stays.
    """
    paths = weight_paths(student)
    before = {
        name: (quantizer.scale.clone(), quantizer.base_codes, quantizer.rounding)
        for name, quantizer in student.quantizers.items()
        if quantizer.base_codes is not None
    }
    keep_biases_in_int32(student)
    for name, (scale, base, rounding) in before.items():
        quantizer = student.quantizers[name]
        if quantizer.base_codes is not None or base is None or rounding is None:
            continue
        shape = [1] * base.dim()
        shape[quantizer.axis or 0] = -1
        weight = attribute(student.program, paths[name])
        raised = (quantizer.scale != scale).view(shape)
        nearest = quantizer.codes(weight) - quantizer.zero_point.view(shape)
        base, rounding = torch.where(raised, nearest, base), rounding & ~raised
        weight.copy_(quantizer.set_rounding(base, rounding))


@dataclass(frozen=True)
class Snapshot:
    """A unit's part of the student at one moment.

    Attributes:
        quantizers: State of each of its quantizers.
        weights: Values of its weights, by path.
        originals: Paths of those that had an original.
    """

    quantizers: Mapping[str, State]
    weights: State
    originals: frozenset[str]

    @staticmethod
    def of(student: Student, unit: Unit) -> "Snapshot":
        """As the student is now."""
        paths = weight_paths(student)
        states = {}
        for name in (*unit.weights, *unit.activations):
            state = student.quantizers[name].state_dict()
            states[name] = {key: value.clone() for key, value in state.items()}
        weights = {
            paths[name]: attribute(student.program, paths[name]).detach().clone()
            for name in unit.weights
        }
        return Snapshot(states, weights, frozenset(student.originals) & weights.keys())

    @torch.no_grad()
    def restore(self, student: Student) -> None:
        """Undo everything since."""
        for name, state in self.quantizers.items():
            student.quantizers[name].load_state_dict(state)
        for path, value in self.weights.items():
            attribute(student.program, path).copy_(value)
            if path not in self.originals:
                student.originals.pop(path, None)


def present_outcome(student: Student, unit: Unit) -> State:
    """The student's own values, as ``install`` takes them: to keep with a finished unit."""
    found: State = {}
    for name in (*unit.weights, *unit.activations):
        quantizer = student.quantizers[name]
        found[f"{name}|scale"] = quantizer.scale.detach().clone()
        found[f"{name}|zero_point"] = quantizer.zero_point.detach().clone()
        if quantizer.base_codes is not None and quantizer.rounding is not None:
            found[f"{name}|base_codes"] = quantizer.base_codes.clone()
            found[f"{name}|rounding"] = quantizer.rounding.clone()
    return found
