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
    keep_biases_in_int32(student)


@dataclass(frozen=True)
class Snapshot:
    """What ``install`` may change of the student for a unit, at one moment.

    That is more than the unit: another scale of its output may raise the weight scales of layers
    that read it (plan `integer`).

    Attributes:
        quantizers: State of each of these quantizers.
        weights: Values of their weights, by path.
        originals: Paths of those that had an original.
    """

    quantizers: Mapping[str, State]
    weights: State
    originals: frozenset[str]

    @staticmethod
    def of(student: Student, unit: Unit) -> "Snapshot":
        """As the student is now."""
        names = [*unit.weights, *unit.activations]
        names += [name for name in _raised_by(student, unit) if name not in names]
        paths, states = weight_paths(student), {}
        for name in names:
            state = student.quantizers[name].state_dict()
            states[name] = {key: value.clone() for key, value in state.items()}
        weights = {
            paths[name]: attribute(student.program, paths[name]).detach().clone()
            for name in names
            if name in paths
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


def _raised_by(student: Student, unit: Unit) -> list[str]:
    """Weight quantizers whose scales follow from those of the unit's activations."""
    return [
        layer.weight_quantizer
        for layer in student.layers()
        if layer.weight_quantizer is not None and layer.input_quantizer in unit.activations
    ]


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
