"""What a plan leaves open, and how large each layer is, against the network itself."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.bit_allocation.freedom import (
    freedoms,
    narrowed,
    overrides_for,
    pattern,
    probe_bits,
    sizes,
)
from emptyset.graph.student import prepare
from emptyset.quantizers.bits import Bits
from emptyset.teachers.teacher import Teacher

Make = Callable[..., Teacher]


class Every(nn.Module):
    """One layer of each kind, one of them read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, 6, (3, 2), groups=2, padding=1)
        self.up = nn.ConvTranspose2d(6, 8, 2, stride=2, groups=2)
        self.twice = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.tokens, self.head = nn.Linear(8, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.up(F.relu(self.grouped(x))))
        x = F.relu(self.twice(F.relu(self.twice(x))))
        # Windows: the first axis is a multiple of the number of images.
        batch, channels, height, width = x.shape
        x = x.permute(0, 2, 3, 1).reshape(batch * height, width, channels)
        x = F.relu(self.tokens(x)).reshape(batch, height * width, 10)
        return self.head(x.mean(1))


def counted_macs(network: nn.Module, image: Tensor) -> dict[str, int]:
    """By definition: outputs times the products in each (transposed: inputs times their uses)."""
    found: dict[str, int] = {}

    def hook(name: str) -> Callable[..., None]:
        def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if isinstance(module, nn.ConvTranspose2d):
                height, width = module.kernel_size
                products = inputs[0].numel() * height * width * module.out_channels
                products //= module.groups
            elif isinstance(module, nn.Conv2d):
                height, width = module.kernel_size
                products = output.numel() * height * width * module.in_channels // module.groups
            else:
                assert isinstance(module, nn.Linear)
                products = output.numel() * module.in_features
            found[name] = found.get(name, 0) + products

        return count

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    ]
    network(image)
    for handle in handles:
        handle.remove()
    return found


def test_sizes_are_those_of_the_network(teacher_of: Make) -> None:
    teacher = teacher_of(Every(), (4, 12, 10))
    found = sizes(prepare(teacher, "w4a4"))
    assert {name: layer.macs for name, layer in found.items()} == counted_macs(
        teacher.module, torch.zeros(1, 4, 12, 10)
    )
    parameters = dict(teacher.module.named_parameters())
    assert {name: layer.weight_count for name, layer in found.items()} == {
        name: parameters[f"{name}.weight"].numel() for name in found
    }
    assert list(found) == ["grouped", "up", "twice", "tokens", "head"]
    assert found["up"].operator == "conv_transpose2d"


@pytest.mark.parametrize("bits", ["w2a2", "w3a8", "w8a8", "w8a2"])
@pytest.mark.parametrize(
    ("plan", "weights", "inputs"),
    [
        # First and last layer 8 bits; the image is quantized; the second layer's input is free.
        ("integer", [False, True, True, False], [False, True, True, False]),
        ("edges_8bit", [False, True, True, False], [False, False, True, False]),
        # No layer is fixed; the image and the pooled features stay float.
        ("every_layer", [True] * 4, [False, True, True, False]),
    ],
)
def test_what_follows_the_bits_is_free(
    four_layers: Teacher, bits: str, plan: str, weights: list[bool], inputs: list[bool]
) -> None:
    asked = Bits.parse(bits)
    student = prepare(four_layers, asked, plan=plan)
    found = freedoms(student, prepare(four_layers, probe_bits(asked), plan=plan))
    assert list(found) == ["a", "b", "c", "d"]
    assert [free.weights for free in found.values()] == weights
    assert [free.inputs for free in found.values()] == inputs


def test_overrides_of_the_user_are_not_free(four_layers: Teacher) -> None:
    asked, fixed = Bits.parse("w4a4"), {"b": "w6a6"}
    student = prepare(four_layers, asked, overrides=fixed)
    found = freedoms(student, prepare(four_layers, probe_bits(asked), overrides=fixed))
    assert (found["b"].weights, found["b"].inputs) == (False, False)
    assert set(overrides_for(found, Bits.parse("w2a3"))) == {"c"}


@pytest.mark.parametrize("plan", ["integer", "edges_8bit", "every_layer"])
def test_overrides_give_free_layers_these_bits_and_leave_the_others(
    four_layers: Teacher, plan: str
) -> None:
    asked, wanted = Bits.parse("w4a5"), Bits.parse("w3a5")
    student = prepare(four_layers, asked, plan=plan)
    free = freedoms(student, prepare(four_layers, probe_bits(asked), plan=plan))
    given = prepare(four_layers, asked, plan=plan, overrides=overrides_for(free, wanted))
    uniform = prepare(four_layers, wanted, plan=plan)
    assert given.layer_bits == uniform.layer_bits


def test_a_path_with_signs_of_patterns_means_itself() -> None:
    from fnmatch import fnmatchcase

    assert fnmatchcase("blocks[0].conv*", pattern("blocks[0].conv*"))
    assert not fnmatchcase("blocks0.conv1", pattern("blocks[0].conv*"))


def test_an_input_that_comes_through_fewer_bits_is_found(four_layers: Teacher) -> None:
    student = prepare(four_layers, "w4a4", plan="every_layer", overrides={"c": "w4a6"})
    assert narrowed(student) == ["c"]
    fewer = prepare(four_layers, "w4a4", plan="every_layer", overrides={"c": "w4a3"})
    assert narrowed(fewer) == []
    # Elsewhere an override of the input is what the layer reads.
    assert narrowed(prepare(four_layers, "w4a4", overrides={"c": "w4a6"})) == []
