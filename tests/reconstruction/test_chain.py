"""The walk down the blocks: what every method that is built on it keeps."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from short_courses import COURSES, course_of, learn
from torch import nn

from emptyset.exporters.simulation import simulate
from emptyset.graph.blocks import find_blocks
from emptyset.graph.student import Student, prepare
from emptyset.images.image_set import ImageSet
from emptyset.quantizers.adaptive_rounding import rounding_share
from emptyset.reconstruction import chain as chain_module
from emptyset.reconstruction.execution import Steps
from emptyset.reconstruction.learnables import logits_of
from emptyset.reconstruction.optimisation import Optimisation
from emptyset.reconstruction.units import weight_paths
from emptyset.refiners.calibrate import Calibrate, CalibrateConfig
from emptyset.teachers.teacher import Teacher

Make = Callable[..., Student]


@pytest.mark.parametrize("kind", COURSES)
class TestEveryCourse:
    @pytest.mark.parametrize(
        ("plan", "batch_norm"), [("edges_8bit", "frozen"), ("integer", "fold")]
    )
    def test_the_student_is_what_the_file_computes_and_float_mode_the_teacher(
        self, kind: str, plan: str, batch_norm: str, teacher: Teacher, student_of: Make,
        images: ImageSet,
    ) -> None:  # fmt: skip
        student = student_of(teacher, "w3a3", plan, batch_norm=batch_norm)
        told = learn(student, images, course_of(kind))
        assert all(one.final <= one.start for one in told)
        with student.float_mode():
            expected = teacher.module(images.images)
            torch.testing.assert_close(student(images.images), expected, atol=1e-5, rtol=0)
        if plan == "integer":
            with torch.no_grad():
                assert torch.equal(student(images.images), simulate(student)(images.images))
        if COURSES[kind].get("rounding", True):
            for name, path in weight_paths(student).items():
                quantizer, weight = student.quantizers[name], student.program.get_parameter(path)
                shape = [-1, *[1] * (weight.dim() - 1)]
                codes = quantizer.base_codes + quantizer.rounding + quantizer.zero_point.view(shape)
                codes = codes.clamp(quantizer.quant_min, quantizer.quant_max)
                assert torch.equal(quantizer.codes(weight), codes.to(torch.int32))

    def test_killed_at_any_moment_it_ends_the_same(
        self, kind: str, teacher: Teacher, student_of: Make, images: ImageSet, disk, killed
    ) -> None:
        fresh, whole = student_of(teacher), disk()
        student = fresh.copy()
        told = learn(student, images, course_of(kind, steps=6), whole)
        expected = student.state_dict()
        for limit in (1, 4, 9, whole.kept - 2):
            student, one = fresh.copy(), disk(limit)
            with pytest.raises(killed):
                learn(student, images, course_of(kind, steps=6), one)
            student, one.limit, before = fresh.copy(), None, len(one.advanced)
            assert learn(student, images, course_of(kind, steps=6), one) == told
            state = student.state_dict()
            assert state.keys() == expected.keys()
            assert all(torch.equal(value, expected[name]) for name, value in state.items())
            # It went on; it did not start again.
            assert len(one.advanced) - before <= len(whole.advanced) - max(0, limit - 4)

    def test_in_files_it_learns_the_same(
        self, kind: str, teacher: Teacher, student_of: Make, images: ImageSet, disk
    ) -> None:
        states, notes = [], []
        for memory in (8.0, 1e-6):
            student, heard = student_of(teacher), disk()
            learn(student, images, course_of(kind, memory=memory), heard)
            states.append(student.state_dict())
            notes.append(heard.notes[0])
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
        assert "in memory" in notes[0]
        assert "files" in notes[1]

    def test_a_saved_student_is_the_same_student(
        self, kind: str, teacher: Teacher, student_of: Make, images: ImageSet, tmp_path: Path
    ) -> None:
        student = student_of(teacher)
        learn(student, images, course_of(kind))
        student.save(tmp_path / "student.safetensors")
        loaded = prepare(teacher, "w3a3", plan="edges_8bit")
        loaded.load_state(tmp_path / "student.safetensors")
        for one in (loaded, student.copy()):
            assert one.state_dict().keys() == student.state_dict().keys()
            assert torch.equal(one(images.images), student(images.images))
            with one.float_mode(), student.float_mode():
                assert torch.equal(one(images.images), student(images.images))


def test_the_first_blocks_error_falls_as_told(
    teacher: Teacher, student_of: Make, images: ImageSet
) -> None:
    """Measured here by another route, on the only block whose inputs do not change."""
    student = student_of(teacher, "w3a8", "every_layer")
    with torch.no_grad(), student.float_mode():
        target = find_blocks(student)[0](images.images)
    errors = []
    for steps in (0, 600):
        learnt = student.copy()
        told = learn(learnt, images, course_of(steps=steps))
        with torch.no_grad():
            gap = find_blocks(learnt)[0](images.images) - target
        errors.append(gap.square().sum(1).mean().item())
        assert told[0].final == pytest.approx(errors[-1], rel=1e-5)
    assert told[0].start == pytest.approx(errors[0], rel=1e-5)
    assert errors[1] < 0.8 * errors[0]


def test_no_steps_round_to_nearest_and_keep_the_codes(
    teacher: Teacher, student_of: Make, images: ImageSet
) -> None:
    student = student_of(teacher)
    learnt = student.copy()
    told = learn(learnt, images, course_of(steps=0))
    assert [one.name for one in told] == ["stem", "units.0", "units.1", "units.2", "linear"]
    assert all(one.start == one.final for one in told)
    assert torch.equal(learnt(images.images), student(images.images))
    for name, path in weight_paths(student).items():
        quantizer = learnt.quantizers[name]
        weight = student.program.get_parameter(path)
        assert torch.equal(learnt.originals[path], weight)
        assert torch.equal(learnt.program.get_parameter(path), quantizer(weight))
        shape = [-1, *[1] * (weight.dim() - 1)]
        floors = (weight * (1 / quantizer.scale.view(shape))).floor()
        assert torch.equal(quantizer.base_codes, floors.to(torch.int32))


def test_a_block_that_learning_does_not_help_is_left_as_it_was(
    teacher: Teacher, student_of: Make, images: ImageSet, disk
) -> None:
    student, heard = student_of(teacher), disk()
    learnt = student.copy()
    # Scales so large or small in the end that nothing is left.
    told = learn(learnt, images, replace(course_of(), weight_scale_rate=2.0), heard)
    assert not any(one.kept for one in told)
    assert all(one.start == one.final for one in told)
    assert torch.equal(learnt(images.images), student(images.images))
    assert "left as they were" in heard.notes[-1]
    assert "units.1" in heard.notes[-1]


def test_rounding_is_decided_at_the_end(
    teacher_of: Callable[..., Teacher], student_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares, run = [], Optimisation.run

    def watched(self: Optimisation, *given: Any) -> torch.Tensor:
        flat = run(self, *given)
        places = [part.logits for part in self.learnables.parts if part.logits is not None]
        shares.extend(rounding_share(logits_of(flat, place)).flatten() for place in places)
        return flat

    monkeypatch.setattr(Optimisation, "run", watched)
    student = student_of(teacher_of(Plain(), (2, 7, 6)))
    learn(student, ImageSet(torch.randn(9, 2, 7, 6)), course_of("weights", steps=250))
    undecided = torch.cat(shares)
    assert len(undecided) == 4 * 2 * 9 + 6 * 4 + 5 * 6
    assert torch.minimum(undecided, 1 - undecided).max().item() < 0.01


def test_a_second_reconstruction_starts_from_the_original_weights(
    teacher: Teacher, student_of: Make, images: ImageSet
) -> None:
    student = student_of(teacher)
    originals = {name: p.detach().clone() for name, p in student.program.named_parameters()}
    learn(student, images, course_of("layers"))
    once = student.state_dict()
    learn(student, images, course_of("layers", steps=0))
    for path, value in student.originals.items():
        assert torch.equal(value, originals[path])
    again = student.state_dict()
    # No steps: what was learnt first is better, so nothing may have become worse.
    assert all(torch.equal(value, once[name]) for name, value in again.items())
    learn(student, images, course_of("jointly", steps=30), seed=9)
    with student.float_mode():
        expected = teacher.module(images.images)
        torch.testing.assert_close(student(images.images), expected, atol=1e-5, rtol=0)


def test_scales_of_activations_are_learnt_on_the_weights_that_were_learnt(
    teacher: Teacher, student_of: Make, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step reads what the student computes: rounding as it was learnt, not to nearest."""
    student = student_of(teacher, "w2a4")
    weights = {n: student.program.get_parameter(n) for n in weight_paths(student)}
    nearest = {name: student.quantizers[name].codes(weight) for name, weight in weights.items()}
    learn(student, images, course_of("weights", steps=150))
    for name in list(nearest)[1:]:
        assert not torch.equal(student.quantizers[name].codes(weights[name]), nearest[name])
    run, step_of = Optimisation.run, Steps.step
    expected: list[float] = []
    losses: list[tuple[int, float]] = []

    def watched_run(self: Optimisation, *given: Any) -> torch.Tensor:
        with torch.no_grad():
            gap = self._unit.body(self._rows.x.read(0, 22)) - self._rows.y.read(0, 22)
        expected.append(gap.abs().pow(2.4).sum(1).mean().item())
        return run(self, *given)

    def watched_step(self: Steps, *given: Any, **more: Any) -> Any:
        step, unit = step_of(self, *given, **more), len(expected)

        def watched(tensors: Any) -> torch.Tensor:
            losses.append((unit, step(tensors).item()))
            return torch.tensor(losses[-1][1])

        return watched

    monkeypatch.setattr(Optimisation, "run", watched_run)
    monkeypatch.setattr(Steps, "step", watched_step)
    # Every step takes all images, so the first loss of a unit is that of the student as it was.
    learn(student, images, course_of("activations", steps=2, batch_size=22, precision="float32"))
    first = dict(reversed(losses))
    # The stem owns no activations.
    assert sorted(first) == [2, 3, 4, 5]
    assert all(loss == pytest.approx(expected[unit - 1], rel=1e-4) for unit, loss in first.items())


class Rows(nn.Module):
    """Maps that are read as rows, by a view or another way."""

    def __init__(self, rows: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 7, 3, padding=1)
        self.head, self.rows = nn.Linear(7 * 4 * 5, 5), rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(self.rows(nn.functional.max_pool2d(x, 2)))


@pytest.mark.parametrize("kind", COURSES)
def test_a_view_of_maps_is_learnt_as_flattening_is(
    kind: str, teacher_of: Callable[..., Teacher], images: ImageSet
) -> None:
    states = []
    for rows in (lambda x: x.view(len(x), -1), lambda x: x.flatten(1)):
        student = prepare(teacher_of(Rows(rows)), "w3a3", plan="integer")
        Calibrate(CalibrateConfig()).refine(student, images)
        learn(student, images, course_of(kind))
        states.append(list(student.state_dict().values()))
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))


def test_raised_scales_of_large_biases_stay_and_codes_fit(
    teacher: Teacher, student_of: Make, images: ImageSet
) -> None:
    """A channel of tiny weights and a bias that int32 cannot hold behind their scale."""
    with torch.no_grad():
        teacher.module.units[0].conv1.weight[3] *= 1e-9
        teacher.module.units[0].norm1.bias[3] = 5.0
    student = student_of(teacher, "w4a4", "integer")
    learn(student, images, course_of())
    with torch.no_grad():
        assert torch.equal(student(images.images), simulate(student)(images.images))
    for name, path in weight_paths(student).items():
        quantizer = student.quantizers[name]
        weight = student.program.get_parameter(path)
        assert quantizer.rounding is not None
        assert torch.equal(quantizer(weight), weight)


def test_equal_blocks_share_one_compiled_step_where_compiling_pays(
    teacher: Teacher, student_of: Make, images: ImageSet, monkeypatch, disk
) -> None:
    compiled: list[Any] = []

    def fake(step: Any, tensors: Any) -> Any:
        compiled.append(tensors)
        return step

    monkeypatch.setattr("emptyset.reconstruction.execution.compiled_step", fake)
    monkeypatch.setattr(chain_module, "worth_compiling", lambda works, *_: (True,) * len(works))
    heard = disk()
    told = learn(student_of(teacher), images, course_of(), heard)
    assert len(told) == 5
    assert len(compiled) == 3
    assert heard.states["test.execution"]["compiled"].tolist() == [True] * 5


def test_a_compiler_that_fails_is_told_and_done_without(
    teacher: Teacher, student_of: Make, images: ImageSet, monkeypatch, disk
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no such instruction")

    expected = student_of(teacher)
    learn(expected, images, course_of())
    monkeypatch.setattr("emptyset.reconstruction.execution.compiled_step", broken)
    monkeypatch.setattr(chain_module, "worth_compiling", lambda works, *_: (True,) * len(works))
    student, heard = student_of(teacher), disk()
    learn(student, images, course_of(), heard)
    assert any("RuntimeError" in note for note in heard.notes)
    for name, value in student.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected.state_dict()[name], atol=1e-2, rtol=1e-2)


def test_settings_that_no_course_can_have_are_refused() -> None:
    with pytest.raises(ValueError, match="inputs"):
        replace(course_of(), inputs="both")
    with pytest.raises(ValueError, match="kept"):
        replace(course_of(), kept=1.5)


class Plain(nn.Module):
    """No BatchNorm, no residual, a linear in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(2, 4, 3), nn.Linear(4, 6), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(torch.relu(self.conv(x)).mean((2, 3)))))


@pytest.mark.parametrize("kind", COURSES)
def test_other_shapes_work_as_well(
    kind: str, teacher_of: Callable[..., Teacher], student_of: Make
) -> None:
    teacher = teacher_of(Plain(), (2, 7, 6))
    pixels = ImageSet(torch.randn(9, 2, 7, 6))
    student = student_of(teacher, "w3a3", "integer")
    told = learn(student, pixels, course_of(kind))
    assert all(one.final <= one.start for one in told)
    with torch.no_grad():
        assert torch.equal(student(pixels.images), simulate(student)(pixels.images))
