"""Damages against networks in which exactly one layer is quantized, built by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.bit_allocation.sensitivity import damages
from emptyset.errors import ImagesError, NotCalibratedError
from emptyset.graph.student import Student, prepare
from emptyset.images.image_set import ImageSet
from emptyset.registry import refiners
from emptyset.teachers.teacher import Teacher


def calibrated(teacher: Teacher, bits: str, images: ImageSet, **options: Any) -> Student:
    student = prepare(teacher, bits, **options)
    entry = refiners.get("calibrate")
    entry.make(entry.config()).refine(student, images, seed=0)
    return student


def rounded(x: Tensor, quantizer: Any) -> Tensor:
    """Own arithmetic: nearest point of the grid, in double."""
    scale, zero = quantizer.scale.double().numpy(), quantizer.zero_point.double().numpy()
    if scale.ndim:
        shape = [-1] + [1] * (x.dim() - 1)
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    codes = np.rint(x.double().numpy() / scale) + zero
    codes = np.clip(codes, quantizer.quant_min, quantizer.quant_max)
    return torch.from_numpy((codes - zero) * scale)


def with_one_layer_quantized(net: Any, student: Student, name: str, x: Tensor) -> Tensor:
    """The network written out once more; layer ``name`` gets a rounded weight and input."""
    layers = {layer.name: layer for layer in student.layers()}

    def operands(layer: str, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        module = getattr(net, layer)
        weight, bias = module.weight.double(), module.bias.double()
        if layer != name:
            return value, weight, bias
        found = layers[layer]
        weight = rounded(weight, student.quantizers[found.weight_quantizer or ""])
        if found.input_quantizer is not None:
            value = rounded(value, student.quantizers[found.input_quantizer])
        return value, weight, bias

    x = F.relu(F.conv2d(*operands("a", x.double())))
    x = F.relu(F.conv2d(*operands("b", x), stride=2))
    x = F.relu(F.conv2d(*operands("c", x)))
    return F.linear(*operands("d", x.mean((2, 3))))


def divergence_by_loops(teacher: Tensor, student: Tensor) -> float:
    total = 0.0
    for one, other in zip(teacher.tolist(), student.tolist(), strict=True):
        p, q = np.exp(one - np.max(one)), np.exp(other - np.max(other))
        p, q = p / p.sum(), q / q.sum()
        total += float((p * np.log(p / q)).sum())
    return total / len(teacher)


@pytest.mark.parametrize("bits", ["w2a8", "w4a3"])
def test_damage_equals_that_of_a_network_with_one_quantized_layer(
    four_layers: Teacher, images: ImageSet, bits: str
) -> None:
    student = calibrated(four_layers, bits, images, plan="edges_8bit")
    names = [layer.name for layer in student.layers()]
    found = damages(student, names, images, batch_size=4)
    net: Any = four_layers.module
    float_logits = net(images.images).double()
    for name in names:
        alone = with_one_layer_quantized(net, student, name, images.images)
        expected = divergence_by_loops(float_logits, alone)
        assert found.alone[name] == pytest.approx(expected, rel=2e-3, abs=1e-9), name
    together = divergence_by_loops(float_logits, student(images.images).double())
    assert found.together == pytest.approx(together, rel=1e-5)


class Twice(nn.Module):
    """One convolution at two places, with another one between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1)
        self.between, self.head = nn.Conv2d(6, 6, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.again(F.relu(self.stem(x))))
        return self.head(F.relu(self.again(F.relu(self.between(x)))).mean((2, 3)))


def test_the_damage_of_a_layer_that_is_called_twice_is_that_of_both_calls(
    teacher_of: Callable[..., Teacher], images: ImageSet
) -> None:
    net: Any = Twice()
    for parameter in net.parameters():
        parameter.data.mul_(2.5)
    student = calibrated(teacher_of(net), "w8a2", images, plan="edges_8bit")
    calls = [layer for layer in student.layers() if layer.name == "again"]
    first, second = (student.quantizers[call.input_quantizer or ""] for call in calls)
    found = damages(student, ["again"], images, batch_size=4)
    weight = rounded(net.again.weight, student.quantizers["again.weight"])
    bias, logits = net.again.bias.double(), net(images.images).double()
    x = rounded(F.relu(net.stem(images.images)), first)
    x = F.relu(F.conv2d(x, weight, bias, padding=1))
    x = rounded(F.relu(net.double().between(x)), second)
    alone = net.head(F.relu(F.conv2d(x, weight, bias, padding=1)).mean((2, 3)))
    expected = divergence_by_loops(logits, alone)
    assert found.alone["again"] == pytest.approx(expected, rel=2e-3)


def test_a_view_of_maps_is_measured_as_flattening_is(
    teacher_of: Callable[..., Teacher], images: ImageSet
) -> None:
    class Rows(nn.Module):
        def __init__(self, *, view: bool) -> None:
            super().__init__()
            self.conv, self.head, self.view = nn.Conv2d(3, 6, 3), nn.Linear(6 * 3 * 4, 5), view

        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(F.relu(self.conv(x)), 2)
            return self.head(x.view(len(x), -1) if self.view else x.flatten(1))

    net = Rows(view=True)
    twin = Rows(view=False)
    twin.load_state_dict(net.state_dict())
    found = [
        damages(calibrated(teacher_of(n), "w2a3", images), ["conv", "head"], images, batch_size=4)
        for n in (net, twin)
    ]
    assert found[0] == found[1]


def test_batches_do_not_change_what_is_found(four_layers: Teacher, images: ImageSet) -> None:
    student = calibrated(four_layers, "w3a4", images)
    small = damages(student, ["b", "d"], images, batch_size=3)
    large = damages(student, ["b", "d"], images, batch_size=64)
    assert small.alone == pytest.approx(large.alone, rel=1e-5)
    assert small.together == pytest.approx(large.together, rel=1e-5)


class Residual(nn.Module):
    """The image is read twice: such a network is no chain of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 3, 3, padding=1)
        self.c, self.d = nn.Conv2d(3, 4, 1), nn.Linear(7, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(x + self.b(F.relu(self.a(x))))
        return self.d(torch.cat([F.relu(self.c(y)), x], 1).mean((2, 3)))


class Chain(nn.Module):
    """Residual blocks, whose inputs are cut points."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(6, 7, 3, padding=1), nn.ReLU(), nn.Conv2d(7, 6, 1))
            for _ in range(3)
        )
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = F.relu(x + block(x))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("network", [Residual, Chain])
@pytest.mark.parametrize("plan", ["integer", "every_layer"])
def test_starting_at_a_layers_own_block_changes_nothing(
    teacher_of: Callable[..., Teacher],
    images: ImageSet,
    network: type[nn.Module],
    plan: str,
) -> None:
    student = calibrated(teacher_of(network()), "w3a3", images, plan=plan)
    names = [layer.name for layer in student.layers()]
    found = damages(student, names, images, batch_size=11)
    with torch.no_grad():
        with student.float_mode():
            float_logits = student(images.images)
        for name in names:
            # The whole network from the image on, by the student's own switch.
            with student.only_layer(name):
                expected = divergence_by_loops(float_logits, student(images.images))
            assert found.alone[name] == pytest.approx(expected, rel=1e-3, abs=1e-8), name


def test_the_student_is_left_as_it_was(four_layers: Teacher, images: ImageSet) -> None:
    student = calibrated(four_layers, "w3a3", images)
    before = student.state_dict()
    damages(student, ["a", "c"], images, batch_size=5)
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    assert all(quantizer.enabled for quantizer in student.quantizers.values())


def test_killed_at_any_moment_it_ends_with_the_same_sums(
    four_layers: Teacher, images: ImageSet, disk: Any
) -> None:
    student = calibrated(four_layers, "w3a3", images)
    whole = disk()
    expected = damages(student, ["b", "c"], images, batch_size=3, monitor=whole)
    assert whole.kept == 5  # four batches and the end
    for limit in range(whole.kept):
        some = disk(limit)
        with pytest.raises(disk.Killed):
            damages(student, ["b", "c"], images, batch_size=3, monitor=some)
        some.limit, before = None, len(some.said)
        assert damages(student, ["b", "c"], images, batch_size=3, monitor=some) == expected
        assert len(some.said) - before == 4 - min(limit, 4)


def test_what_was_kept_with_other_batches_is_not_gone_on_with(
    four_layers: Teacher, images: ImageSet, disk: Any
) -> None:
    student = calibrated(four_layers, "w3a3", images)
    some = disk(1)
    with pytest.raises(disk.Killed):
        damages(student, ["b"], images, batch_size=4, monitor=some)
    some.limit = None
    expected = damages(student, ["b"], images, batch_size=3)
    assert damages(student, ["b"], images, batch_size=3, monitor=some) == expected


def test_a_network_with_one_output_is_refused(
    teacher_of: Callable[..., Teacher], images: ImageSet
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 8, 1))
    student = calibrated(teacher_of(net), "w4a8", images)
    with pytest.raises(ImagesError, match="one output"):
        damages(student, ["0"], images, batch_size=4)


def test_outputs_that_are_not_finite_are_told(four_layers: Teacher, images: ImageSet) -> None:
    student = calibrated(four_layers, "w4a8", images)
    student.weight_of(student.layers()[2]).fill_(float("nan"))
    with pytest.raises(NotCalibratedError, match=r"c: the divergence from the teacher is nan"):
        damages(student, ["c"], images, batch_size=4)


def test_without_images_it_says_so(four_layers: Teacher, images: ImageSet) -> None:
    class Nothing:
        def __len__(self) -> int:
            return 0

        def batches(self, size: int) -> Any:
            return iter(())

    student = calibrated(four_layers, "w4a8", images)
    with pytest.raises(ImagesError, match="there are no images"):
        damages(student, ["c"], Nothing(), batch_size=4)
