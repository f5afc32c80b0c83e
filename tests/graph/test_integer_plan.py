"""Each rule of plan `integer`, on a network built to show it."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import emptyset
from emptyset.errors import RecipeError
from emptyset.graph.student import Student, prepare
from emptyset.teachers.teacher import Teacher

Prepare = Callable[..., Student]


@pytest.fixture
def prepared(teacher_of: Callable[..., Teacher]) -> Prepare:
    def make(module: nn.Module, bits: str = "w4a4", **options: object) -> Student:
        return prepare(teacher_of(module), bits, **options)

    return make


def widths(student: Student) -> dict[str, int]:
    """Bits of every activation's quantizer by name."""
    return {name: q.bits for name, q in student.quantizers.items() if q.axis is None}


class Chain(nn.Module):
    """Four convolutions and a linear; the test says what stands between."""

    def __init__(self, between: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1)
        self.third, self.fourth = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 7, 3, padding=1)
        self.last = nn.Linear(7, 4)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(x))))
        x = F.relu(self.fourth(self.between(self.third(x))))
        return self.last(x.mean((2, 3)))


class Residual(Chain):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(x))))
        x = F.relu(self.third(x) + x)
        return self.last(F.relu(self.fourth(x)).mean((2, 3)))


class Prepared(Chain):
    """The network normalises its images itself, or does something else to them first."""

    def __init__(self, first: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1))
        self.prepare = first

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.prepare(x, self.mean))


@pytest.mark.parametrize(
    ("first", "quantized"),
    [
        (lambda x, mean: (x - mean) / 0.25, ["div.output"]),
        (lambda x, mean: 2 * x[:, [2, 1, 0]] - mean, ["sub.output"]),
        (lambda x, mean: (1 - x) * mean, ["mul.output"]),
        (lambda x, mean: x - mean.flatten()[None, :, None, None], ["sub.output"]),
        (lambda x, mean: x.sub_(mean).div_(torch.as_tensor([0.5]).view(-1, 1, 1)), ["div.output"]),
        (lambda x, _: x + x.flip(3), ["input", "add.output"]),
        (lambda x, _: x + x, ["input", "add.output"]),
        (lambda x, mean: torch.sigmoid(x - mean), ["sigmoid.output"]),
    ],
    ids=[
        "normalised",
        "reordered and scaled",
        "turned",
        "reshaped",
        "in place",
        "with itself",
        "twice",
        "sigmoid",
    ],
)
def test_an_image_is_quantized_behind_arithmetic_with_constants(
    first: Callable[[Tensor, Tensor], Tensor], quantized: list[str], prepared: Prepare
) -> None:
    student = prepared(Prepared(first))
    names = [name.removeprefix("network.") for name in widths(student)]
    assert names[: names.index("relu.output")] == quantized


def test_without_images_the_range_behind_it_is_that_of_all_pixels(prepared: Prepare) -> None:
    network = Prepared(lambda x, mean: (x - mean) / 0.25)
    network.first = nn.Sequential(network.first, nn.BatchNorm2d(5))  # type: ignore[assignment]
    for name in ("second", "third", "fourth"):
        layer = getattr(network, name)
        setattr(network, name, nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels)))
    student = prepared(network, "w8a8")
    emptyset.refine(student, None, "calibrate", activation_values="batch_norm")
    low, high = student.teacher.input.pixel_range()
    quantizer = student.quantizers["network.div.output"]
    span = (high - 0.2) / 0.25 - (low - 0.6) / 0.25
    assert quantizer.scale.item() == pytest.approx(float(span) / 255, rel=1e-6)


def test_first_and_last_layers_and_their_inputs_have_8_bits(prepared: Prepare) -> None:
    given = {n: (b.weights, b.inputs, b.role) for n, b in prepared(Chain()).layer_bits.items()}
    assert given == {
        "first": (8, 8, "first"),
        "second": (4, 4, "second"),
        "third": (4, 4, "inner"),
        "fourth": (4, 4, "inner"),
        "last": (8, 8, "last"),
    }


@pytest.mark.parametrize(("switch", "bits"), [(False, 3), (True, 8)])
def test_the_second_layers_input_follows_its_switch(
    prepared: Prepare, switch: bool, bits: int
) -> None:
    settings = {"second_layer_input_8": switch}
    student = prepared(Chain(), "w2a3", plan_settings=settings)
    assert student.layer_bits["second"].inputs == bits
    assert student.layer_bits["second"].weights == 2
    assert widths(student)["network.relu.output"] == bits


def test_quantizers_are_named_after_the_tensor(prepared: Prepare) -> None:
    student = prepared(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 6, 3),
                                     nn.Flatten(), nn.Linear(144, 4)))  # fmt: skip
    assert sorted(student.quantizers) == [
        "0.weight", "1.relu.output", "2.conv2d.output", "2.weight", "3.flatten.output",
        "4.weight", "input",
    ] or sorted(student.quantizers) == [
        "0.weight", "1.relu.output", "2.conv2d.output", "2.weight", "4.weight", "input",
    ]  # fmt: skip
    assert all(q.name == name for name, q in student.quantizers.items())


def test_a_tensor_that_only_narrow_operators_read_is_quantized_once(prepared: Prepare) -> None:
    found = widths(prepared(Chain()))
    assert [bits for name, bits in found.items() if "relu" in name] == [4, 4, 4, 8]
    assert not [name for name in found if name.endswith("bit")]


def test_a_tensor_read_at_two_widths_is_quantized_in_series(prepared: Prepare) -> None:
    student = prepared(Residual())
    found = widths(student)
    series = [name for name in found if name.endswith(".4bit")]
    # Both the addition and the next convolution read the second relu.
    assert series == ["network.relu.output.2.4bit"]
    assert found["network.relu.output.2"] == 8
    third = next(layer for layer in student.layers() if layer.name == "third")
    assert third.input_quantizer == series[0]


@pytest.mark.parametrize(
    "clip", [F.relu, F.relu6, lambda x: x.clamp(-0.3, 0.9), nn.Hardtanh(-2.0, 1.0)]
)
def test_a_layer_owns_its_clip(prepared: Prepare, clip: Callable[[Tensor], Tensor]) -> None:
    found = widths(prepared(Chain(clip)))
    assert not [name for name in found if name.startswith("third")]


@pytest.mark.parametrize("activation", [F.hardswish, F.silu, F.gelu, torch.sigmoid])
def test_before_another_activation_the_layers_own_output_is_quantized(
    prepared: Prepare, activation: Callable[[Tensor], Tensor]
) -> None:
    assert widths(prepared(Chain(activation)))["third.conv2d.output"] == 8


def test_a_clip_beside_another_reader_is_not_owned(prepared: Prepare) -> None:
    found = widths(prepared(Chain(lambda x: F.relu(x) + x)))
    assert found["third.conv2d.output"] == 8


class Concat(Chain):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = torch.cat([F.relu(self.second(x)), x], 1)[:, :6]
        x = F.pad(F.max_pool2d(x, 2), (1, 1, 0, 2))
        return self.last(F.relu(self.fourth(x)).mean((2, 3)))


def test_concat_slice_pool_and_pad_share_one_scale(prepared: Prepare) -> None:
    student = prepared(Concat(), "w8a8")
    assert sorted(widths(student)) == [
        "input", "network.mean.output", "network.relu.output", "network.relu.output.2",
    ] or len(widths(student)) == 4  # fmt: skip
    fourth = next(layer for layer in student.layers() if layer.name == "fourth")
    second = next(layer for layer in student.layers() if layer.name == "second")
    assert fourth.input_quantizer == second.input_quantizer


@pytest.mark.parametrize(
    ("average", "name"),
    [
        (lambda x: F.avg_pool2d(x, 2), "network.avg_pool2d.output"),
        (lambda x: F.adaptive_avg_pool2d(x, 3), "network.adaptive_avg_pool2d.output"),
        (
            lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
            "network.upsample_bilinear2d.output",
        ),
    ],
)
def test_averages_and_resizes_have_a_scale_of_their_own(
    prepared: Prepare, average: Callable[[Tensor], Tensor], name: str
) -> None:
    found = widths(prepared(Chain(lambda x: average(F.relu(x))), "w8a8"))
    assert name in found
    # The tensor that is averaged keeps its own.
    assert len([n for n in found if "relu" in n]) == 4


def test_the_logits_stay_float(prepared: Prepare) -> None:
    student = prepared(Chain(), "w8a8")
    (output,) = next(n for n in student.program.graph.nodes if n.op == "output").all_input_nodes
    assert output.op == "call_function"


@pytest.mark.parametrize("bits", ["w4a4", "w2a4"])
def test_a_batch_norm_that_nothing_absorbs_is_an_8_bit_depthwise_layer(
    prepared: Prepare, bits: str
) -> None:
    class PreActivation(Chain):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(5)

        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(self.first(x), 2)
            return self.last(self.fourth(self.second(F.relu(self.norm(x)))).mean((2, 3)))

    given = prepared(PreActivation(), bits).layer_bits
    depthwise = given["norm.depthwise"]
    assert (depthwise.weights, depthwise.inputs, depthwise.role) == (8, 8, "batch_norm")
    # It is no layer of the protocol: the one behind it is still the second.
    assert given["second"].role == "second"


def test_weights_are_symmetric_at_8_bits_and_affine_below(prepared: Prepare) -> None:
    quantizers = prepared(Chain()).quantizers
    first, third = quantizers["first.weight"], quantizers["third.weight"]
    assert (first.symmetric, first.quant_min, first.quant_max) == (True, -127, 127)
    assert (third.symmetric, third.quant_min, third.quant_max) == (False, -8, 7)
    symmetric = prepared(Chain(), plan_settings={"affine_weights": False}).quantizers
    third = symmetric["third.weight"]
    assert (third.symmetric, third.quant_min, third.quant_max) == (True, -7, 7)


def test_both_operands_of_both_attention_products_have_b_bits(prepared: Prepare) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.last = nn.Conv2d(3, 6, 2, 2), nn.Linear(6, 4)
            self.query, self.key, self.value = (nn.Linear(6, 6) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x).flatten(2).transpose(1, 2)
            args = [m(x) for m in (self.query, self.key, self.value)]
            return self.last(F.scaled_dot_product_attention(*args).mean(1))

    found = widths(prepared(Attention(), "w8a4"))
    for name in ("query", "key", "value"):
        assert found[f"{name}.linear.output"] == 4
    assert next(bits for name, bits in found.items() if "softmax" in name) == 4


class Transformer(nn.Module):
    """One block; as in timm, shapes are read from the image's batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 6, 2, 2), nn.Linear(6, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.attend, self.project = nn.Linear(6, 6), nn.Linear(6, 6)
        self.up, self.down = nn.Linear(6, 9), nn.Linear(9, 6)

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[0]
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(count, -1, -1), x], 1)
        x = x + self.project(self.attend(x).reshape(count, -1, 2, 3).transpose(2, 3).flatten(2))
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x.reshape(count, -1, 6)[:, 0])


def test_roles_follow_the_data_and_not_the_sizes(prepared: Prepare) -> None:
    found = {name: given.role for name, given in prepared(Transformer()).layer_bits.items()}
    assert found == {
        "embed": "first", "attend": "second", "project": "inner",
        "up": "inner", "down": "inner", "head": "last",
    }  # fmt: skip


def test_overrides_change_the_layers_that_match(prepared: Prepare) -> None:
    student = prepared(Chain(), overrides={"t*": "w8a6", "first": "w2a8"})
    given = {n: (b.weights, b.inputs) for n, b in student.layer_bits.items()}
    assert given["third"] == (8, 6)
    assert given["first"] == (2, 8)
    assert given["second"] == (4, 4)
    assert student.quantizers["third.weight"].bits == 8
    assert widths(student)["network.relu.output.2"] == 6


def test_an_override_that_matches_nothing_lists_the_layers(prepared: Prepare) -> None:
    with pytest.raises(RecipeError, match=r"no layer matches 'layer9\.\*'.*first, second"):
        prepared(Chain(), overrides={"layer9.*": "w8a8"})


def test_an_unknown_setting_lists_the_known_ones(prepared: Prepare) -> None:
    with pytest.raises(RecipeError, match="Settings: second_layer_input_8, affine_weights"):
        prepared(Chain(), plan_settings={"second": True})


def test_frozen_batch_norm_is_refused_with_the_way_out(prepared: Prepare) -> None:
    with pytest.raises(RecipeError, match="Use batch_norm 'fold', or plan"):
        prepared(Chain(), batch_norm="frozen")


def test_layers_whose_weight_has_any_name_are_found(prepared: Prepare) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
            self.embed, self.last = nn.Conv2d(3, 6, 2, 2), nn.Linear(6, 4)
            self.register_buffer("kernel", torch.randn(5, 6))

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x).flatten(2).transpose(1, 2)
            x = self.attention(x, x, x, need_weights=False)[0]
            return self.last(F.pad(F.linear(x, self.kernel), (0, 1)).mean(1))

    student = prepared(Own())
    shapes = {layer.name: layer.weight_shape for layer in student.layers()}
    assert shapes["attention.in_proj_weight"] == (18, 6)
    assert shapes["kernel"] == (5, 6)
    for layer in student.layers():
        assert student.weight_of(layer).shape == layer.weight_shape
