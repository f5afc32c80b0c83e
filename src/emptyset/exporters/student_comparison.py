"""Compares the simulation with the student, quantizer by quantizer, on the student's own codes.

The simulation is the student converted: whatever conversion, folding and rewriting got wrong would
be in the file too, and a comparison with the file does not show it. What may differ: codes at
rounding boundaries, and biases, which outside plan `integer` only the file rounds. These must be
roundings of the student's, and the comparison is made without them.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from emptyset.exporters.code_comparison import CodeComparison, NodeRecord
from emptyset.exporters.frozen_batch_norm import factor_and_bias, frozen_chain
from emptyset.exporters.simulation import Simulation, is_quantize
from emptyset.graph.bias_range import keep_biases_in_int32
from emptyset.graph.edits import quantizer_of
from emptyset.graph.operators import WEIGHTED, argument, attribute, behind_images, name_of
from emptyset.graph.originals import originals_in_place
from emptyset.graph.student import Student

# Logits are float sums; the student adds in float32, the comparison in float64.
LOGITS_GAP = 1e-4
# Steps that rounding may move a bias, and what float32 may add to that, as a share of the bias.
HALF_A_STEP, ROUNDED = 0.5001, 1e-6


@torch.no_grad()
def student_fault(student: Student, simulation: Simulation, images: Tensor) -> str | None:
    """The first place where the simulation goes another way than the student, or None.

    Args:
        student: As it was simulated; untouched.
        simulation: Of this student.
        images: ``(N, C, H, W)``, N >= 2, normalised, on the CPU.
    """
    copied, program = student.on_cpu(), simulation.program
    keep_biases_in_int32(copied)
    for quantizer in copied.quantizers.values():
        quantizer.enabled = True
    run = _Recording(copied)
    logits = run.run(images).numpy()
    names = [node.name for node in behind_images(program) if is_quantize(node)]
    layers = [list(_layers(of)) for of in (copied.program, program)]
    if len(names) != len(run.codes) or len(layers[0]) != len(layers[1]):
        return "the simulation has other tensors or layers than the student"
    biases = _biases(copied, simulation)
    for name, (path, own) in biases.items():
        off = (attribute(program, path).double() - own).abs()
        allowed = HALF_A_STEP * simulation.biases[name].scale.double() + ROUNDED * own.abs()
        if bool((off > allowed).any()):
            return f"{name}: the simulation's bias is no rounding of the student's"
    comparison = CodeComparison(simulation)
    with originals_in_place(program, dict(biases.values())):
        expected = comparison.compare(images, dict(zip(names, run.codes, strict=True))).numpy()
    for record in comparison.records():
        if _differs(record):
            return (
                f"{record.name} ({record.operator}): {record.faults + record.distinct_ties} of "
                f"{record.values} codes of the simulation differ from the student's by up to "
                f"{record.worst}"
            )
    gap = float(np.abs(logits - expected).max() / (np.abs(expected).max() or 1.0))
    if not gap <= LOGITS_GAP:
        return f"the simulation's logits differ from the student's by {gap:.1e} of the largest"
    return None


def _differs(record: NodeRecord) -> bool:
    """Whether more than rounding is between the two.

    The student adds in float32 throughout, so a value may lie a little beyond what counts as a tie.
    """
    beyond = record.faults + record.distinct_ties
    return record.missing or record.worst > 1 or beyond > record.ties_allowed()


class _Recording(fx.Interpreter):
    """Runs a student and keeps the codes of every tensor that depends on the images, in order."""

    def __init__(self, student: Student) -> None:
        super().__init__(student.program)
        self.codes: list[np.ndarray[Any, Any]] = []
        quantizers = {n: quantizer_of(student.program, n) for n in behind_images(student.program)}
        self._quantizers = {node: found for node, found in quantizers.items() if found is not None}

    def run_node(self, node: fx.Node) -> Any:
        if node in self._quantizers:
            codes = self._quantizers[node].codes(self.env[node.all_input_nodes[0]])
            self.codes.append(codes.to(torch.int16).numpy())
        return super().run_node(node)


def _layers(program: fx.GraphModule) -> list[fx.Node]:
    return [node for node in program.graph.nodes if name_of(node) in WEIGHTED]


def _biases(student: Student, simulation: Simulation) -> dict[str, tuple[str, Tensor]]:
    """Path and the student's value of every bias that only the simulation rounds, by layer."""
    found = {}
    for own, layer in zip(_layers(student.program), _layers(simulation.program), strict=True):
        bias = argument(own, 2)
        rounds_itself = isinstance(bias, fx.Node) and bias.op == "call_module"
        if layer.name in simulation.biases and not rounds_itself:
            path = str(argument(layer, 2).target)
            chain = frozen_chain(student.program, own)
            value = factor_and_bias(student.program, own, chain)[1]
            found[layer.name] = path, value.expand_as(attribute(simulation.program, path))
    return found
