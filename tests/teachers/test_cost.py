"""What an image costs: counted by operator, expected by hand from the shapes."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import emptyset
from emptyset.teachers.cost import cost_of
from emptyset.teachers.teacher import InputSpec, Teacher


def teacher_of(module: nn.Module, shape: tuple[int, int, int]) -> Teacher:
    spec = InputSpec(shape, (0.5,) * shape[0], (0.25,) * shape[0])
    return Teacher("toy", module.eval(), spec)


def test_convolutions_and_linears_are_counted_by_their_shapes() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 6, (3, 5), stride=2, padding=(1, 2)),  # 6 x 4 x 7 values of 3 * 15 products
        nn.ReLU(),
        nn.Conv2d(6, 4, 1, groups=2),  # 4 x 4 x 7 values of 3 products
        nn.Flatten(),
        nn.Linear(4 * 4 * 7, 5),
    )
    found = cost_of(teacher_of(network, (3, 8, 14)))
    assert found.values == 6 * 28 + 4 * 28 + 5
    assert found.products == 6 * 28 * 45 + 4 * 28 * 3 + 5 * 112
    assert found.device == "cpu"
    assert not found.depthwise
    assert not found.batch_norm


def test_a_convolution_of_every_channel_by_itself_is_depthwise() -> None:
    network = nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.Flatten(), nn.Linear(8 * 3 * 5, 2))
    found = cost_of(teacher_of(network, (4, 5, 7)))
    assert found.depthwise
    assert found.products == 8 * 15 * 9 + 2 * 120
    one_channel = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 2 * 3, 2))
    assert not cost_of(teacher_of(one_channel, (1, 4, 5))).depthwise


def test_a_transposed_convolution_multiplies_every_input_with_its_kernel() -> None:
    network = nn.Sequential(nn.ConvTranspose2d(2, 3, 4, stride=2), nn.Flatten(), nn.Linear(360, 7))
    found = cost_of(teacher_of(network, (2, 4, 5)))
    assert found.values == 3 * 10 * 12 + 7
    assert found.products == 2 * 4 * 5 * 3 * 16 + 360 * 7


class Attention(nn.Module):
    """Tokens of 6 features, pixels of one row each; two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(6, 18)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = (
            part.unflatten(2, (2, 3)).transpose(1, 2) for part in self.project(tokens).chunk(3, 2)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.head(mixed.transpose(1, 2).flatten(2).mean(1))


def test_both_products_of_attention_are_counted() -> None:
    found = cost_of(teacher_of(Attention(), (6, 5, 7)))
    tokens = 35
    projections = tokens * 6 * 18 + 6 * 4
    # Every head: queries with keys, and shares with values.
    assert found.products == projections + 2 * (tokens * tokens * 3 + tokens * tokens * 3)
    assert found.values >= tokens * 18 + tokens * 6 + 4


def test_the_shipped_networks_are_told_apart() -> None:
    deep, light = (cost_of(emptyset.load(f"embedded:digits-{n}")) for n in ("resnet", "mobilenet"))
    assert light.depthwise
    assert deep.batch_norm
    assert light.batch_norm
    assert not deep.depthwise
    assert light.products < deep.products
    assert light.values > deep.values


def test_counting_leaves_no_gradient_and_no_mode_behind() -> None:
    teacher = emptyset.load("embedded:digits-resnet")
    cost_of(teacher)
    assert torch.is_grad_enabled()
    assert all(p.grad is None for p in teacher.module.parameters())
    assert not teacher.module.training
