"""Corrections behind Genie: the codes that were learnt, and the buffers that tell them, stay."""

from typing import Any

import pytest
import torch
from torch import Tensor

import emptyset
from emptyset.graph.student import Student, prepare
from emptyset.reconstruction.units import weight_paths

CORRECTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "re-estimation": ("batch_norm_reestimation", {"largest_factor": 10.0}),
    "re-estimation of all layers": ("batch_norm_reestimation", {"layers": "all"}),
    "norms": ("bias_correction", {"statistics": "empirical", "weight_norms": True}),
    "analytic norms": ("bias_correction", {"weight_norms": True}),
    "biases": ("bias_correction", {"statistics": "empirical"}),
}


def learnt(small: Any, plan: str, module: Any = None) -> Student:
    student = prepare(small.teacher_of(module or small.Plain()), "w3a4", plan=plan)
    emptyset.refine(
        student, small.images(24), "genie",
        steps=20, batch_size=8, rounding_learning_rate=5e-2, penalty=1e-3,
    )  # fmt: skip
    return student


def codes_of(student: Student) -> dict[str, Tensor]:
    return {
        name: student.quantizers[name].codes(student.program.get_parameter(path))
        for name, path in weight_paths(student).items()
    }


@pytest.mark.parametrize("plan", ["integer", "edges_8bit"])
@pytest.mark.parametrize("name", CORRECTIONS)
def test_learnt_rounding_survives(name: str, plan: str, small: Any) -> None:
    student = learnt(small, plan)
    before, codes = student.copy(), codes_of(student)
    refiner, settings = CORRECTIONS[name]
    emptyset.refine(student, small.images(24), refiner, **settings)
    for weight, path in weight_paths(student).items():
        quantizer, then = student.quantizers[weight], before.quantizers[weight]
        value = student.program.get_parameter(path)
        assert torch.equal(quantizer.codes(value), codes[weight])
        assert torch.equal(quantizer.base_codes, then.base_codes)
        assert torch.equal(quantizer.rounding, then.rounding)
        # Codes of the base and the bit, not only of the value.
        assert torch.equal(quantizer(value), value)
        assert torch.equal(quantizer.learnt_values(), value)
        assert torch.equal(student.originals[path], before.originals[path])
    if name != "biases":
        scales = [student.quantizers[n].scale for n in codes]
        assert any(not torch.equal(a, before.quantizers[n].scale)
                   for a, n in zip(scales, codes, strict=True))  # fmt: skip


@pytest.mark.parametrize("name", ["biases", "re-estimation"])
def test_only_a_channel_that_its_bias_raises_is_rounded_anew(name: str, small: Any) -> None:
    """A channel so small that a bias moved by little leaves int32."""
    net = small.Plain()
    teacher = small.teacher_of(net)
    with torch.no_grad():
        net.second[0].weight[3] *= 1e-9
        net.second[1].bias[3] = 1.0
    student = prepare(teacher, "w3a4", plan="integer")
    shown = small.images(24)
    emptyset.refine(student, shown, "genie", steps=5, batch_size=8)
    weight = student.quantizers["second.0.weight"]
    before, scale = weight.rounding.clone(), weight.scale.clone()
    with torch.no_grad():
        # As a correction may find it: not raised yet.
        student.program.get_parameter("second.0.bias")[3] *= 4.0
    refiner, settings = CORRECTIONS[name]
    emptyset.refine(student, shown, refiner, **settings | (
        {"largest_factor": 1.0, "blend": 0.0} if name == "re-estimation" else {}
    ))  # fmt: skip
    raised = weight.scale > 1.5 * scale
    assert raised.tolist() == [channel == 3 for channel in range(7)]
    assert weight.rounding is not None
    assert torch.equal(weight.rounding[~raised], before[~raised])
