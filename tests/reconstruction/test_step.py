"""One step against a plain loop of the same mathematics, written with torch's own optimizer."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from emptyset.graph.blocks import find_blocks
from emptyset.graph.student import Student
from emptyset.images.image_set import ImageSet
from emptyset.reconstruction.caches import CacheRoom, Rows
from emptyset.reconstruction.config import Course, ReconstructionConfig
from emptyset.reconstruction.execution import CHANGED, compiled_step
from emptyset.reconstruction.graph_function import GraphFunction
from emptyset.reconstruction.learnables import Learnables, logits_of, slice_of
from emptyset.reconstruction.random_bits import bits_of, word_count
from emptyset.reconstruction.step import unit_step
from emptyset.reconstruction.unit_tensors import UnitRows, UnitTensors
from emptyset.reconstruction.units import Unit, units_of, weight_paths
from emptyset.teachers.teacher import Teacher

BATCH, STEPS = 6, 9
# About as large as the distance; where h is nearly decided, 20th powers magnify rounding errors.
PENALTY = 0.002


def rows_of(values: Tensor) -> Rows:
    rows = CacheRoom(1 << 24, half=False, device=torch.device("cpu")).rows(tuple(values.shape))
    rows.write(0, values)
    return rows


def course_of(**more: object) -> Course:
    settings = {"steps": STEPS, "batch_size": BATCH, "penalty": PENALTY, "warm_up": 0.3}
    config = ReconstructionConfig(**settings, rounding_learning_rate=2e-2)
    return Course(name="test", config=config, steps=STEPS, **more)


class Case:
    """The first residual block of a student, with made-up inputs and targets."""

    def __init__(self, student: Student, images: ImageSet, course: Course, *, fused: bool) -> None:
        self.student, self.course = student, course
        blocks = find_blocks(student)
        self.block = blocks[1]
        self.unit: Unit = units_of(student, self.block, by_layer=False)[0]
        generator = torch.Generator().manual_seed(8)
        with torch.no_grad(), student.float_mode():
            self.x_float = blocks[0](images.images)
            self.y = self.block(self.x_float)
        noise = 0.2 * torch.randn(self.x_float.shape, generator=generator)
        self.x = (self.x_float + noise).relu()
        self.g = 1 + torch.rand(self.y.shape, generator=generator)
        function = GraphFunction(
            student, self.unit.body, tuple(weight_paths(student)), torch.float32
        )
        self.names = function.quantizers
        self.learnables = Learnables(student, self.unit, course, self.names, {})
        weighted = rows_of(self.g) if course.weighting != "none" else None
        mixed = rows_of(self.x_float) if course.inputs == "mixed" else None
        rows = UnitRows(rows_of(self.x), mixed, rows_of(self.y), weighted)
        self.tensors = UnitTensors(
            function, self.learnables, rows, course,
            channel_axis=1, seed=5, fused=fused,
        )  # fmt: skip

    def learn(self, steps: int = STEPS) -> list[float]:
        step, losses = unit_step(self.tensors.recipe), []
        for number in range(steps):
            self.tensors.prepare(number)
            losses.append(step(self.tensors.named).item())
        return losses

    def learnt(self) -> dict[str, Tensor]:
        """V and scale parameters by quantizer name."""
        flat, found = self.tensors.named["flat"], {}
        for name, part in zip(self.names, self.learnables.parts, strict=True):
            if part.logits is not None:
                found[f"{name}|logits"] = logits_of(flat, part.logits)
            if part.scale is not None:
                found[f"{name}|scale"] = slice_of(flat, part.scale).reshape(-1)
        return found


class PlainLoop:
    """The same, the way released codes do it: modules' own tensors, torch's Adam, autograd."""

    def __init__(self, case: Case) -> None:
        self.case, self.quantizers = case, case.student.quantizers
        course, rate = case.course, case.course.config.rounding_learning_rate
        self.base, self.logits, self.scales = {}, {}, {}
        groups = []
        for name in case.unit.weights:
            quantizer = self.quantizers[name]
            weight = case.student.program.get_parameter(name)
            scale = quantizer.scale.view(-1, 1, 1, 1)
            self.base[name] = torch.floor(weight / scale)
            share = weight / scale - self.base[name]
            self.logits[name] = (-torch.log(1.2 / (share + 0.1) - 1)).requires_grad_()
            self.scales[name] = torch.zeros_like(quantizer.scale)
            groups.append({"params": [self.logits[name]], "lr": rate})
            if course.weight_scale_rate:
                self.scales[name].requires_grad_()
                groups.append({"params": [self.scales[name]], "lr": course.weight_scale_rate})
        for name in case.unit.activations:
            self.scales[name] = torch.zeros(1)
            if course.activation_scale_rate:
                self.scales[name].requires_grad_()
                groups.append({"params": [self.scales[name]], "lr": course.activation_scale_rate})
        self.adam = torch.optim.Adam(groups)
        self.cosine = torch.optim.lr_scheduler.LambdaLR(self.adam, [
            (lambda _: 1.0) if group["params"][0].dim() == 4 else
            (lambda t: 0.5 * (1 + torch.cos(torch.tensor(torch.pi * t / STEPS)).item()))
            for group in groups
        ])  # fmt: skip

    def scale(self, name: str) -> Tensor:
        start, p = self.quantizers[name].scale, self.scales[name]
        scale = start * p.exp() if self.case.course.relative_scales else start + p
        return scale.reshape(start.shape)

    def weight(self, name: str, shares: list[Tensor]) -> Tensor:
        quantizer = self.quantizers[name]
        share = (torch.sigmoid(self.logits[name]) * 1.2 - 0.1).clamp(0, 1)
        shares.append(share)
        zero = quantizer.zero_point.view(-1, 1, 1, 1)
        code = (self.base[name] + share + zero).clamp(quantizer.quant_min, quantizer.quant_max)
        return self.scale(name).view(-1, 1, 1, 1) * (code - zero)

    def activation(self, name: str, x: Tensor, chosen: Tensor | None) -> Tensor:
        """Straight-through rounding; clamped before (value) or after it (code)."""
        quantizer, scale = self.quantizers[name], self.scale(name)
        low, high = quantizer.quant_min, quantizer.quant_max
        position = x * (1.0 / scale) + quantizer.zero_point
        if self.case.course.mask == "value":
            position = position.clamp(low, high)
        code = (position.round() - position).detach() + position
        out = (code.clamp(low, high) - quantizer.zero_point) * scale
        return out if chosen is None else torch.where(chosen, out, x)

    def step(self, number: int) -> float:
        case, course = self.case, self.case.course
        index = case.tensors._order[number]
        words, used = case.tensors._bits.words[number % case.tensors._bits.steps], 0

        def chosen(shape: torch.Size) -> Tensor | None:
            nonlocal used
            if course.kept == 1.0:
                return None
            count = word_count(tuple(shape))
            used += count
            return bits_of(words[used - count : used], tuple(shape)).bool()

        x = case.x[index]
        if course.inputs == "mixed":
            mask = chosen(x.shape)
            x = x if mask is None else torch.where(mask, x, case.x_float[index])
        shares: list[Tensor] = []
        program, (first, second) = case.student.program, case.unit.activations
        biases = [program.get_parameter(n.replace("weight", "bias")) for n in case.unit.weights]
        y = self.activation(first, x, chosen(x.shape)) if course.activations else x
        y = F.conv2d(y, self.weight(case.unit.weights[0], shares), biases[0], padding=1).relu()
        y = self.activation(second, y, chosen(y.shape)) if course.activations else y
        y = F.conv2d(y, self.weight(case.unit.weights[1], shares), biases[1], padding=1)
        gap = (x + y).relu() - case.y[index]
        if course.weighting == "fisher":
            loss = (gap.square() * case.g[index].square()).sum(1).mean()
        elif course.weighting == "fisher_full":
            dots = (gap.abs() * case.g[index]).sum((1, 2, 3), keepdim=True)
            loss = (dots * gap.abs() * case.g[index]).mean() / 100
        else:
            loss = gap.abs().pow(course.exponent).sum(1).mean()
        start = course.config.warm_up * STEPS
        if number >= start:
            beta = 2 + 18 * (1 - (number - start) / (STEPS - start))
            for share in shares:
                loss = loss + PENALTY * (1 - (2 * share - 1).abs().pow(beta)).sum()
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        self.cosine.step()
        return loss.item()


COURSES = {
    "adaround": {"activations": False},
    "fisher": {"activations": False, "weighting": "fisher"},
    "fisher_full": {"activations": False, "weighting": "fisher_full"},
    "qdrop": {
        "activation_scale_rate": 2e-4, "inputs": "mixed", "kept": 0.5, "order": "replacement",
    },
    "genie": {
        "weight_scale_rate": 1e-3, "activation_scale_rate": 2e-4, "inputs": "mixed", "kept": 0.5,
        "mask": "value", "order": "epochs",
    },
    "relative": {
        "weight_scale_rate": 2e-3, "activation_scale_rate": 2e-3, "mask": "value",
        "relative_scales": True,
    },
    "exponent": {"activation_scale_rate": 2e-4, "exponent": 2.4},
}  # fmt: skip


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", COURSES)
def test_steps_are_those_of_a_plain_loop(
    kind: str, fused: bool, teacher: Teacher, student_of, images: ImageSet
) -> None:
    case = Case(student_of(teacher), images, course_of(**COURSES[kind]), fused=fused)
    plain = PlainLoop(case)
    step, losses, expected = unit_step(case.tensors.recipe), [], []
    for number in range(STEPS):
        case.tensors.prepare(number)
        expected.append(plain.step(number))
        losses.append(step(case.tensors.named).item())
    assert losses == pytest.approx(expected, rel=3e-4)
    found = case.learnt()
    for name, logits in plain.logits.items():
        torch.testing.assert_close(found[f"{name}|logits"], logits.detach(), atol=2e-3, rtol=1e-3)
    for name, scale in plain.scales.items():
        if scale.requires_grad:
            learnt = found[f"{name}|scale"]
            torch.testing.assert_close(learnt, scale.detach().reshape(-1), atol=2e-4, rtol=2e-2)
            assert learnt.abs().max() > 1e-5


def test_the_gradient_factor_is_lsqs(teacher: Teacher, student_of, images: ImageSet) -> None:
    course = course_of(activation_scale_rate=4e-3, scale_gradient_factor=True)
    case = Case(student_of(teacher), images, course, fused=True)
    factors = case.tensors.named["gradient_factors"]
    # The block reads 6 channels of 8 x 10, its second convolution 7; unsigned codes to 255 and 7.
    for name, elements, largest in zip(
        case.unit.activations, (BATCH * 6 * 80, BATCH * 7 * 80), (255, 7), strict=True
    ):
        part = case.learnables.parts[case.names.index(name)]
        assert slice_of(factors, part.scale).item() == pytest.approx((elements * largest) ** -0.5)
    assert (factors != 1).sum().item() == 2


def test_integer_biases_are_rounded_as_the_student_rounds_them(
    teacher: Teacher, student_of: Callable[..., Student], images: ImageSet
) -> None:
    student = student_of(teacher, "w4a4", "integer")
    case = Case(student, images, course_of(weight_scale_rate=1e-3), fused=True)
    flat, parts = case.tensors.named["flat"], case.learnables.parts
    for part in parts:  # decided, as the student rounds: to nearest
        if part.logits is not None:
            view = logits_of(flat, part.logits)
            view.copy_(torch.where(view >= 0, 9.0, -9.0))
    with torch.no_grad():
        expected = (case.block(case.x) - case.y)[case.tensors._order[0]].square().sum(1).mean()
    assert case.learn(1)[0] == pytest.approx(expected.item(), rel=1e-5)


def test_the_compiled_step_is_the_eager_one(teacher: Teacher, student_of, images: ImageSet) -> None:
    course = course_of(**COURSES["genie"])
    student = student_of(teacher)
    eager, case = (Case(student, images, course, fused=fused) for fused in (False, True))
    losses = eager.learn(4)
    run = compiled_step(unit_step(case.tensors.recipe), case.tensors.named)
    before = {name: case.tensors.named[name].clone() for name in CHANGED}
    assert all(not value.any() for name, value in before.items() if name != "flat")
    for number in range(4):
        case.tensors.prepare(number)
        assert run(case.tensors.named).item() == pytest.approx(losses[number], rel=1e-4)
    for name, value in eager.learnt().items():
        torch.testing.assert_close(case.learnt()[name], value, atol=2e-3, rtol=1e-3)
