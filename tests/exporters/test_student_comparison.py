"""A simulation that is not the student fails the certificate, though the file is its equal."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

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


@pytest.mark.parametrize("steps", [-1, 1])
@pytest.mark.parametrize("plan", ["every_layer", "edges_8bit"])
def test_a_bias_one_step_off_is_no_rounding_of_the_students(
    plan: str, steps: int, small: nn.Module, calibrated
) -> None:
    student, images = calibrated(small, "w8a8", **PLANS[plan])
    simulation = simulation_module.simulate(student)
    layer = layers(simulation.program)[2]
    held = attribute(simulation.program, str(argument(layer, 2).target))
    with torch.no_grad():
        held[4] += steps * simulation.biases[layer.name].scale[4]
    fault = student_fault(student, simulation, images.images)
    assert fault == f"{layer.name}: the simulation's bias is no rounding of the student's"


@pytest.mark.parametrize(
    ("number", "factor", "expected"),
    [(0, 1.003, "differ from the student's by up to 1"), (-1, 1.0003, "the simulation's logits")],
)
def test_a_scale_a_little_off_is_found(
    number: int, factor: float, expected: str, small: nn.Module, calibrated
) -> None:
    student, images = calibrated(small, "w8a8")
    simulation = simulation_module.simulate(student)
    with torch.no_grad():
        weight_scale(number, factor)(simulation.program)
    fault = student_fault(student, simulation, images.images)
    assert expected in str(fault)


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3 * 8 * 10, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x.flatten(1))))


def test_few_codes_that_are_far_off_are_no_rounding(calibrated) -> None:
    student, images = calibrated(Hidden(), "w8a8")
    simulation = simulation_module.simulate(student)
    assert student_fault(student, simulation, images.images[:2]) is None
    first = layers(simulation.program)[0]
    with torch.no_grad():
        attribute(simulation.program, str(argument(first, 2).target))[4] += 0.7
    fault = student_fault(student, simulation, images.images[:2])
    assert "2 of 12 codes of the simulation differ" in str(fault)
