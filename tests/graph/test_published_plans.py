"""The two placements that published results use."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import emptyset
from emptyset.graph.student import Student, prepare
from emptyset.images.image_set import ImageSet
from emptyset.teachers.teacher import Teacher


class Net(nn.Module):
    """A residual addition without a ReLU behind it: the rule leaves `third` a float input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1)
        self.third, self.fourth = nn.Conv2d(5, 6, 3), nn.Conv2d(6, 7, 3)
        self.last = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = self.second(x) + x
        x = F.hardtanh(self.third(x), 0.0, 6.0)
        return self.last(F.relu(self.fourth(x)).mean((2, 3)))


@pytest.fixture
def prepared(teacher_of: Callable[..., Teacher]) -> Callable[..., Student]:
    return lambda plan, bits="w3a5", **options: prepare(
        teacher_of(Net()), bits, plan=plan, **options
    )


def test_every_layer_gives_b_bits_to_every_weight_and_every_relu(prepared) -> None:
    student = prepared("every_layer")
    weights = {n: q.bits for n, q in student.quantizers.items() if q.axis is not None}
    assert weights == {f"{n}.weight": 3 for n in ("first", "second", "third", "fourth", "last")}
    activations = {n: q.bits for n, q in student.quantizers.items() if q.axis is None}
    # Three: relu, relu6 written as hardtanh, relu. Image, addition and pooled features are float.
    assert activations == {
        "network.relu.output": 5, "network.hardtanh.output": 5, "network.relu.output.2": 5,
    }  # fmt: skip
    assert not any(q.symmetric for q in student.quantizers.values())


def test_every_layer_counts_the_inputs_that_the_rule_leaves_in_float(prepared) -> None:
    assert prepared("every_layer").float_inputs == ["third"]


def test_strict_quantizes_them_too(prepared) -> None:
    student = prepared("every_layer", plan_settings={"strict": True})
    assert student.float_inputs == []
    given = {layer.name: layer.input_quantizer for layer in student.layers()}
    assert given["third"] == "network.add.output"
    assert given["first"] is None
    assert given["last"] is None


def test_edges_8bit_quantizes_every_input_but_the_image(prepared) -> None:
    student = prepared("edges_8bit")
    given = {n: (b.weights, b.inputs) for n, b in student.layer_bits.items()}
    assert given == {
        "first": (8, None), "second": (3, 8), "third": (3, 5), "fourth": (3, 5), "last": (8, 8),
    }  # fmt: skip
    inputs = {layer.name: layer.input_quantizer for layer in student.layers()}
    assert inputs["first"] is None
    assert student.quantizers[inputs["last"]].bits == 8
    assert student.float_inputs == []


def test_the_switches_of_edges_8bit(prepared) -> None:
    settings = {"second_layer_input_8": False, "last_layer_input_8": False}
    given = prepared("edges_8bit", plan_settings=settings).layer_bits
    assert (given["second"].inputs, given["last"].inputs) == (5, 5)
    assert given["last"].weights == 8


@pytest.mark.parametrize("second", [True, False])
def test_a_shortcut_reads_what_the_layer_beside_it_reads(second: bool, prepared) -> None:
    settings = {"second_layer_input_8": second}
    plain = prepared("edges_8bit", plan_settings=settings)
    shared = prepared("edges_8bit", plan_settings={**settings, "quantized_shortcuts": True})
    # No quantizer more: one serves the layer and the addition.
    assert list(shared.quantizers) == list(plain.quantizers)
    x = torch.randn(6, 3, 9, 8, generator=torch.Generator().manual_seed(1))
    for student in (plain, shared):
        emptyset.refine(student, ImageSet(x))
    net, quantizers = shared.teacher.module, shared.quantizers
    inputs = {layer.name: layer.input_quantizer for layer in shared.layers()}

    def expected(both: bool) -> Tensor:
        def layer(name: str, x: Tensor) -> Tensor:
            module = getattr(net, name)
            weight = quantizers[f"{name}.weight"](module.weight)
            if name == "last":
                return F.linear(x, weight, module.bias)
            return F.conv2d(x, weight, module.bias, padding=module.padding)

        def read(name: str, x: Tensor) -> Tensor:
            return quantizers[inputs[name]](x)

        one = F.relu(layer("first", x))
        rounded = read("second", one)
        two = layer("second", rounded) + (rounded if both else one)
        three = F.hardtanh(layer("third", read("third", two)), 0.0, 6.0)
        four = F.relu(layer("fourth", read("fourth", three))).mean((2, 3))
        return layer("last", read("last", four))

    with torch.no_grad():
        torch.testing.assert_close(shared(x), expected(True))
        assert not torch.allclose(shared(x), expected(False), atol=1e-4)


@pytest.mark.parametrize("plan", ["every_layer", "edges_8bit"])
def test_overrides_reach_both_plans(plan: str, prepared) -> None:
    student = prepared(plan, overrides={"fourth": "w6a7"})
    assert student.quantizers["fourth.weight"].bits == 6
    fourth = next(layer for layer in student.layers() if layer.name == "fourth")
    assert student.quantizers[fourth.input_quantizer].bits == 7
    assert student.layer_bits["fourth"].inputs == 7
