"""A simulation that is not the student fails the certificate, though the file is its equal."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import fx, nn

from emptyset.exporters import simulation as simulation_module
from emptyset.exporters.certificate import certify
from emptyset.exporters.integer_bias import round_biases
from emptyset.exporters.onnx import export
from emptyset.exporters.student_comparison import student_fault
from emptyset.graph.operators import argument, attribute, name_of

Change = Callable[[fx.GraphModule], None]


def layers(program: fx.GraphModule) -> list[fx.Node]:
    return [node for node in program.graph.nodes if name_of(node) in ("conv2d", "linear")]


def weight_scale(number: int, factor: float) -> Change:
    def change(program: fx.GraphModule) -> None:
        dequantize = layers(program)[number].args[1]
        attribute(program, str(dequantize.args[1].target)).mul_(factor)

    return change


def weight_code(program: fx.GraphModule) -> None:
    codes = attribute(program, str(layers(program)[1].args[1].args[0].target))
    codes[2] = -codes[2]


def bias(program: fx.GraphModule) -> None:
    attribute(program, str(argument(layers(program)[2], 2).target))[3] += 0.05


def input_scale(program: fx.GraphModule) -> None:
    """Both ways, as if the student's quantizer had another range."""
    scale = 1.02 * layers(program)[2].args[0].args[1]
    for node in (layers(program)[2].args[0], layers(program)[2].args[0].args[0]):
        node.args = (node.args[0], scale, *node.args[2:])


PLANS = {
    "integer": {},
    "every_layer": {"plan": "every_layer", "batch_norm": "frozen"},
    "edges_8bit": {"plan": "edges_8bit"},
}
CHANGES: dict[str, tuple[str, Change]] = {
    "the scale of a first weight": ("codes", weight_scale(0, 1.1)),
    "the scale of a later weight": ("codes", weight_scale(2, 1.2)),
    "the scale of the last weight": ("logits differ", weight_scale(-1, 1.001)),
    "codes of one channel": ("codes", weight_code),
    "a bias": ("codes|no rounding", bias),
    "the scale of an activation": ("codes", input_scale),
}


@pytest.mark.parametrize("plan", ["integer", "every_layer"])
@pytest.mark.parametrize("what", CHANGES)
def test_a_change_that_is_in_the_file_too_is_found(
    what: str, plan: str, small: nn.Module, calibrated, tmp_path: Path, monkeypatch
) -> None:
    expected, change = CHANGES[what]
    student, images = calibrated(small, "w8a8", **PLANS[plan])

    def changed(program: fx.GraphModule) -> object:
        with torch.no_grad():
            change(program)
        return round_biases(program)

    monkeypatch.setattr(simulation_module, "round_biases", changed)
    artefact = export(student, tmp_path / "model.onnx")
    certificate = certify(artefact.path, student, images, simulation=artefact.simulation)
    assert not certificate.holds
    assert re.search(f"(simulation|student).*({expected})|({expected}).*student", certificate.fault)


@pytest.mark.parametrize("bits", ["w8a8", "w4a4", "w2a2", "w2a4"])
@pytest.mark.parametrize("plan", PLANS)
def test_rounded_biases_and_ties_are_no_fault(
    plan: str, bits: str, small: nn.Module, calibrated
) -> None:
    student, images = calibrated(small, bits, **PLANS[plan])
    before = student.state_dict()
    assert student_fault(student, simulation_module.simulate(student), images.images) is None
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
