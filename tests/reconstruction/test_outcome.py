"""What was learnt, written into a student and taken back."""

import pytest
import torch

from emptyset.graph.bias_range import keep_biases_in_int32
from emptyset.graph.blocks import find_blocks
from emptyset.graph.student import Student
from emptyset.images.image_set import ImageSet
from emptyset.quantizers.adaptive_rounding import split
from emptyset.reconstruction.outcome import (
    Snapshot,
    install,
    present_outcome,
    switched,
)
from emptyset.reconstruction.range_search import search_ranges
from emptyset.reconstruction.units import Unit, units_of
from emptyset.teachers.teacher import Teacher


def unit_of(student: Student, number: int = 1) -> Unit:
    return units_of(student, find_blocks(student)[number], by_layer=False)[0]


def made_up(student: Student, unit: Unit) -> dict[str, torch.Tensor]:
    """Other scales and random bits for everything in the unit."""
    generator, found = torch.Generator().manual_seed(2), {}
    for name in (*unit.weights, *unit.activations):
        quantizer = student.quantizers[name]
        found[f"{name}|scale"] = quantizer.scale * 1.25
        found[f"{name}|zero_point"] = quantizer.zero_point.clone()
        if name in unit.weights:
            weight = student.program.get_parameter(name)
            scale = quantizer.scale.view(-1, *[1] * (weight.dim() - 1))
            found[f"{name}|base_codes"] = split(weight, scale)[0]
            found[f"{name}|rounding"] = torch.rand(weight.shape, generator=generator) < 0.5
    return found


def test_installed_codes_are_the_ones_given_and_the_original_is_kept(
    teacher: Teacher, student_of
) -> None:
    student = student_of(teacher)
    unit = unit_of(student)
    before, outcome = student.state_dict(), made_up(student, unit)
    install(student, outcome)
    for name in unit.weights:
        quantizer, weight = student.quantizers[name], student.program.get_parameter(name)
        shape = [-1, *[1] * (weight.dim() - 1)]
        zero = quantizer.zero_point.view(shape)
        codes = (outcome[f"{name}|base_codes"] + outcome[f"{name}|rounding"] + zero).clamp(-4, 3)
        assert torch.equal(weight, (codes - zero) * outcome[f"{name}|scale"].view(shape))
        assert torch.equal(quantizer.codes(weight), codes.to(torch.int32))
        assert torch.equal(student.originals[name], before[name])
    for name in unit.activations:
        assert torch.equal(student.quantizers[name].scale, outcome[f"{name}|scale"])


def test_what_is_read_back_can_be_installed_again(teacher: Teacher, student_of) -> None:
    student = student_of(teacher)
    other = student.copy()
    unit = unit_of(student)
    install(student, made_up(student, unit))
    install(other, present_outcome(student, unit))
    expected = student.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in other.state_dict().items())


def test_a_snapshot_undoes_everything(teacher: Teacher, student_of) -> None:
    student = student_of(teacher)
    unit, before = unit_of(student), student.state_dict()
    snapshot = Snapshot.of(student, unit)
    install(student, made_up(student, unit))
    snapshot.restore(student)
    after = student.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_a_snapshot_of_learnt_rounding_brings_it_back(teacher: Teacher, student_of) -> None:
    student = student_of(teacher)
    unit = unit_of(student)
    install(student, made_up(student, unit))
    learnt, snapshot = student.state_dict(), Snapshot.of(student, unit)
    outcome = {name: value * 2 for name, value in made_up(student, unit).items() if "sc" in name}
    install(student, made_up(student, unit) | outcome)
    snapshot.restore(student)
    after = student.state_dict()
    assert after.keys() == learnt.keys()
    assert all(torch.equal(value, learnt[name]) for name, value in after.items())


def test_only_raised_channels_are_rounded_anew(teacher: Teacher, student_of) -> None:
    student = student_of(teacher, "w4a4", "integer")
    unit = unit_of(student)
    outcome = made_up(student, unit)
    # So small that the bias behind it would leave int32.
    name = unit.weights[0]
    outcome[f"{name}|scale"][3] = 1e-10
    install(student, outcome)
    quantizer, weight = student.quantizers[name], student.program.get_parameter(name)
    raised = quantizer.scale > outcome[f"{name}|scale"]
    assert raised.tolist() == [channel == 3 for channel in range(7)]
    others = ~raised
    assert torch.equal(quantizer.base_codes[others], outcome[f"{name}|base_codes"][others])
    assert torch.equal(quantizer.rounding[others], outcome[f"{name}|rounding"][others])
    assert torch.equal(quantizer(weight), weight)
    state = student.state_dict()
    keep_biases_in_int32(student)
    assert all(torch.equal(value, state[k]) for k, value in student.state_dict().items())


def test_activations_are_switched_off_and_on_again(teacher: Teacher, student_of) -> None:
    student, on = student_of(teacher), set()

    def look() -> None:
        with switched(student, activations=False):
            on.update(name for name, quantizer in student.quantizers.items() if quantizer.enabled)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        look()
    assert on == {name for name, q in student.quantizers.items() if q.axis is not None}
    assert all(quantizer.enabled for quantizer in student.quantizers.values())


def test_ranges_are_searched_on_the_first_images_behind_quantized_weights(
    teacher: Teacher, student_of, images: ImageSet
) -> None:
    student, seen = student_of(teacher, "w3a3", "every_layer"), []
    hook = student.quantizers["network.relu.output"].register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].detach().clone())
    )
    search_ranges(student, images, count=7, size=3)
    hook.remove()
    assert [len(x) for x in seen] == [3, 3, 1]
    values = torch.cat(seen)
    with torch.no_grad(), switched(student, activations=False):
        expected = find_blocks(student)[0](images.images[:7])
    torch.testing.assert_close(values, expected)
    # No worse than any scale nearby, in the same norm.
    quantizer = student.quantizers["network.relu.output"]

    def error(scale: float) -> float:
        out = torch.fake_quantize_per_tensor_affine(values, scale, 0, 0, 7)
        return (out - values).abs().pow(2.4).mean().item()

    best = error(quantizer.scale.item())
    assert best <= 1.02 * min(error(quantizer.scale.item() * f) for f in (0.7, 0.85, 1.15, 1.3))
