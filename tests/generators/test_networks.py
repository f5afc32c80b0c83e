"""The generators' networks against plain torch layers in the published order, in double precision.

The oracle is written from the published description: nearest doubling, 3 x 3 convolutions,
BatchNorm layers of torch, one after the other.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.generators.autorecon_cells import CELLS, AutoReConBackbone, CellCode
from emptyset.generators.conditional_norm import LabelledNorm
from emptyset.generators.doubled_convolution import DoubledConvolution
from emptyset.generators.initialisation import initialised
from emptyset.generators.upsampling_backbone import UpsamplingBackbone

CPU = torch.device("cpu")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def filled(build: object, seed: int = 0) -> nn.Module:
    """Built as a source builds it, in double, with gains and shifts that are not 1 and 0."""
    with torch.device("meta"):
        module = build()
    module = initialised(module, seeded(seed), CPU).double()
    random = seeded(seed + 1)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, LabelledNorm) and part.classes is not None:
                part.gain.copy_(1 + 0.3 * torch.randn(part.gain.shape, generator=random))
                part.shift.copy_(0.3 * torch.randn(part.shift.shape, generator=random))
    return module


def normalised(x: Tensor, epsilon: float) -> Tensor:
    """BatchNorm without weights, from its definition."""
    mean = x.mean((0, 2, 3), keepdim=True)
    return (x - mean) / ((x - mean).square().mean((0, 2, 3), keepdim=True) + epsilon).sqrt()


@pytest.mark.parametrize(("size", "to"), [((4, 5), (8, 10)), ((3, 4), (5, 7)), ((1, 2), (2, 4))])
def test_a_doubled_convolution_is_upsampling_and_a_convolution(
    size: tuple[int, int], to: tuple[int, int]
) -> None:
    layer = DoubledConvolution(3, 4).double()
    random = seeded()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random, dtype=torch.double))
    x = torch.randn(2, 3, *size, generator=random, dtype=torch.double, requires_grad=True)
    pull = torch.randn(2, 4, *to, generator=random, dtype=torch.double)
    wanted = [x, layer.weight, layer.bias]
    large = F.interpolate(x, size=to, mode="nearest")
    expected = F.conv2d(large, layer.weight, layer.bias, padding=1)
    actual = layer(x, to)
    torch.testing.assert_close(actual, expected)
    for ours, theirs in zip(
        torch.autograd.grad(actual, wanted, pull),
        torch.autograd.grad(expected, wanted, pull),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_class_conditional_norm_adds_up_the_gains_of_its_classes() -> None:
    norm = filled(lambda: LabelledNorm(3, 4, epsilon=0.8))
    random = seeded(5)
    x = torch.randn(2, 3, 4, 5, generator=random, dtype=torch.double)
    weights = torch.rand(2, 4, generator=random, dtype=torch.double)
    plain = normalised(x, 0.8)
    gains, shifts = (table.detach().T.tolist() for table in (norm.gain, norm.shift))
    expected = torch.empty_like(x)
    for image in range(2):
        for channel in range(3):
            row = weights[image].tolist()
            gain = sum(w * g for w, g in zip(row, gains[channel], strict=True))
            shift = sum(w * s for w, s in zip(row, shifts[channel], strict=True))
            expected[image, channel] = plain[image, channel] * gain + shift
    torch.testing.assert_close(norm(x, weights), expected)


@pytest.mark.parametrize("shape", [(3, 8, 12), (1, 9, 7), (3, 4, 4)])
def test_the_cifar_generator_is_the_published_stack_of_layers(shape: tuple[int, int, int]) -> None:
    net = filled(lambda: UpsamplingBackbone(shape, latent=6, widths=(5, 4)))
    z = torch.randn(7, 6, generator=seeded(3), dtype=torch.double)
    channels, height, width = shape
    small = (-(-height // 4), -(-width // 4))
    x = F.linear(z, net.linear.weight, net.linear.bias).view(7, 5, *small)
    x = F.interpolate(normalised(x, 1e-5), size=(-(-height // 2), -(-width // 2)))
    x = F.conv2d(x, net.conv1.weight, net.conv1.bias, padding=1)
    x = F.interpolate(F.leaky_relu(normalised(x, 0.8), 0.2), size=(height, width))
    x = F.conv2d(x, net.conv2.weight, net.conv2.bias, padding=1)
    x = F.leaky_relu(normalised(x, 0.8), 0.2)
    x = F.conv2d(x, net.conv3.weight, net.conv3.bias, padding=1)
    torch.testing.assert_close(net(z, None), normalised(x.tanh(), 1e-5))
    assert net(z, None).shape == (7, channels, height, width)


def test_the_imagenet_generator_has_a_gain_and_a_shift_for_every_class() -> None:
    net = filled(lambda: UpsamplingBackbone((3, 8, 8), latent=6, widths=(5, 4), classes=3))
    random = seeded(3)
    z = torch.randn(7, 6, generator=random, dtype=torch.double)
    labels = torch.tensor([0, 2, 1, 1, 0, 2, 2])

    def conditional(x: Tensor, norm: LabelledNorm, epsilon: float) -> Tensor:
        gain, shift = norm.gain[labels], norm.shift[labels]
        return normalised(x, epsilon) * gain[:, :, None, None] + shift[:, :, None, None]

    x = F.linear(z, net.linear.weight, net.linear.bias).view(7, 5, 2, 2)
    x = F.interpolate(conditional(x, net.norm0, 1e-5), scale_factor=2)
    x = F.conv2d(x, net.conv1.weight, net.conv1.bias, padding=1)
    x = F.interpolate(F.leaky_relu(conditional(x, net.norm1, 0.8), 0.2), scale_factor=2)
    x = F.conv2d(x, net.conv2.weight, net.conv2.bias, padding=1)
    x = F.leaky_relu(conditional(x, net.norm2, 0.8), 0.2)
    x = F.conv2d(x, net.conv3.weight, net.conv3.bias, padding=1)
    onehot = F.one_hot(labels, 3).double()
    torch.testing.assert_close(net(z, onehot), normalised(x.tanh(), 1e-5))


@pytest.mark.parametrize(("share", "least", "most"), [(1.0, 0.9, 1.01), (1 / 100, 0.0, 0.001)])
def test_the_mean_of_a_hundred_classes_starts_as_a_grey_image(
    share: float, least: float, most: float
) -> None:
    with torch.device("meta"):
        built = UpsamplingBackbone((3, 16, 16), latent=8, widths=(32, 16), classes=100)
    net = initialised(built, seeded(), CPU)
    weights = torch.randn(12, 100, generator=seeded(2)).softmax(dim=1) * share
    images = net(torch.randn(12, 8, generator=seeded(1)), weights)
    spread = float(images.detach().std())
    assert least <= spread <= most


def test_first_weights_come_from_the_seed_and_have_torchs_spread() -> None:
    before = torch.get_rng_state()
    made = []
    for seed in (0, 0, 1):
        with torch.device("meta"):
            built = nn.Sequential(nn.Linear(400, 50), nn.Embedding(60, 50), nn.Conv2d(4, 9, 5))
        made.append(initialised(built, seeded(seed), CPU))
    assert torch.equal(torch.get_rng_state(), before)
    linear, embedding, conv = made[0]
    assert torch.equal(linear.weight, made[1][0].weight)
    assert not torch.equal(linear.weight, made[2][0].weight)
    # Uniform within 1/√fan_in has a standard deviation of 1/√(3 fan_in).
    assert float(linear.weight.detach().std()) == pytest.approx((3 * 400) ** -0.5, rel=0.05)
    assert float(linear.weight.detach().abs().max()) <= 400**-0.5
    assert float(conv.bias.detach().abs().max()) <= 100**-0.5
    assert float(embedding.weight.detach().std()) == pytest.approx(1.0, rel=0.05)


# AutoReCon -----------------------------------------------------------------------------------


def test_published_codes_have_the_length_of_three_cells() -> None:
    for code in CELLS.values():
        first, second, third = CellCode.parse(code)
        assert [len(c.ups) for c in (first, second, third)] == [2, 2, 2]
        assert [len(c.ops) for c in (first, second, third)] == [5, 5, 5]
        assert [len(c.cross) for c in (first, second, third)] == [0, 6, 6]
    assert CellCode.parse(CELLS["cifar10"])[1].ops == [6, 6, 3, 5, 6]


class PlainCells:
    """The cells from their published description, with the parameters of the network under test."""

    def __init__(self, net: nn.Module, code: str, labels: Tensor) -> None:
        self.net, self.labels = net, labels
        ups, ops, cross = code.split("|")
        self.ups, self.ops, self.cross = (list(map(int, part)) for part in (ups, ops, cross))

    def norm(self, x: Tensor, norm: LabelledNorm) -> Tensor:
        gain, shift = norm.gain[self.labels], norm.shift[self.labels]
        return normalised(x, 0.8) * gain[:, :, None, None] + shift[:, :, None, None]

    def convolved(self, x: Tensor, block: nn.Module, padding: int, dilation: int) -> Tensor:
        x = F.leaky_relu(self.norm(x, block.norm), 0.2)
        return F.conv2d(x, block.conv.weight, block.conv.bias, padding=padding, dilation=dilation)

    def up(self, x: Tensor, module: nn.Module, kind: int, size: list[int]) -> Tensor:
        if kind:
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        else:
            x = F.interpolate(x, size=size, mode="nearest")
        return self.convolved(x, module.block, 0, 1)

    def operator(self, x: Tensor, cell: nn.Module, place: int, number: int) -> Tensor:
        if number == 0:
            return torch.zeros_like(x)
        if number == 1:
            return x
        padding, dilation = {2: (0, 1), 3: (1, 1), 4: (2, 1), 5: (2, 2), 6: (4, 2)}[number]
        return self.convolved(x, cell.ops[str(place)], padding, dilation)

    def cell(self, index: int, x: Tensor, before: list[Tensor], size: list[int]) -> list[Tensor]:
        cell = self.net.cells[index]
        ups, ops = self.ups[2 * index :], self.ops[5 * index :]
        links = self.cross[6 * (index - 1) : 6 * index] if index else []
        n0, n1 = (self.up(x, cell.ups[i], ups[i], size) for i in (0, 1))
        n2 = self.operator(n0, cell, 0, ops[0]) + self.operator(n1, cell, 1, ops[1])
        for place, kind in enumerate(links[:3]):
            if kind:
                n2 = n2 + self.up(before[place], cell.cross[str(place)], kind - 1, size)
        n3 = sum(self.operator(n, cell, 2 + i, ops[2 + i]) for i, n in enumerate((n0, n1, n2)))
        for place, kind in enumerate(links[3:]):
            if kind:
                n3 = n3 + self.up(before[place], cell.cross[str(3 + place)], kind - 1, size)
        return [n0, n1, n2, n3]

    def image(self, z: Tensor, sizes: list[list[int]], width: int) -> Tensor:
        third = z.shape[1] // 3
        parts = [z[:, :third], z[:, third : 2 * third], z[:, 2 * third :]]
        entering = [
            F.linear(part, layer.weight, layer.bias).view(len(z), width, *size)
            for part, layer, size in zip(parts, self.net.inputs, sizes, strict=False)
        ]
        nodes: list[Tensor] = []
        for index in range(3):
            x = entering[index] if index == 0 else nodes[3] + entering[index]
            nodes = self.cell(index, x, nodes, sizes[index + 1])
        x = F.leaky_relu(self.norm(nodes[3], self.net.norm), 0.2)
        x = F.conv2d(x, self.net.conv.weight, self.net.conv.bias, padding=1)
        return normalised(x.tanh(), 1e-5)


@pytest.mark.parametrize("cells", sorted(CELLS))
@pytest.mark.parametrize("size", [(16, 24), (9, 20)])
def test_autorecons_cells_compute_what_was_published(cells: str, size: tuple[int, int]) -> None:
    width, latent = 4, 7
    net = filled(
        lambda: AutoReConBackbone((3, *size), latent=latent, classes=3, cells=cells, width=width)
    )
    z = torch.randn(5, latent, generator=seeded(8), dtype=torch.double)
    labels = torch.tensor([0, 2, 1, 1, 2])
    sizes = [[-(-side // by) for side in size] for by in (8, 4, 2, 1)]
    expected = PlainCells(net, CELLS[cells], labels).image(z, sizes, width)
    torch.testing.assert_close(net(z, F.one_hot(labels, 3).double()), expected)
    assert expected.shape == (5, 3, *size)
