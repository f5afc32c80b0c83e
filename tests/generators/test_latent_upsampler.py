"""Genie's generator against the same network built of torch's layers."""

from typing import Any

import pytest
import torch
from torch import nn

from emptyset.generators import latent_upsampler
from emptyset.generators.latent_upsampler import WEIGHTS, LatentUpsampler


class Layers(nn.Module):
    """The generator as the paper's code builds it, for sizes that 4 divides."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width
        self.linear = nn.Linear(5, 6 * (height // 4) * (width // 4))
        self.rest = nn.Sequential(
            nn.BatchNorm2d(6), nn.Upsample(scale_factor=2), nn.Conv2d(6, 4, 3, padding=1),
            nn.BatchNorm2d(4), nn.LeakyReLU(0.2), nn.Upsample(scale_factor=2),
            nn.Conv2d(4, 3, 3, padding=1), nn.Tanh(), nn.BatchNorm2d(3, affine=False),
        )  # fmt: skip

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.rest(self.linear(z).view(-1, 6, self.height // 4, self.width // 4))


def test_it_computes_what_torchs_layers_compute() -> None:
    canvas = LatentUpsampler((8, 12), latent=5, widths=(6, 4))
    variables = canvas.start((7, 3, 8, 12), torch.Generator().manual_seed(0))
    layers = Layers(8, 12).train()
    parameters = list(layers.parameters())
    assert len(variables) == 1 + WEIGHTS == 1 + len(parameters)
    with torch.no_grad():
        for parameter, value in zip(parameters, variables[1:], strict=True):
            assert parameter.shape == value.shape
            parameter.copy_(value)
    torch.testing.assert_close(canvas.render(variables), layers(variables[0]))


def test_the_first_weights_are_spread_as_torch_spreads_them() -> None:
    canvas = LatentUpsampler((8, 8), latent=50, widths=(30, 20))
    variables = canvas.start((64, 3, 8, 8), torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = [nn.Linear(50, 120), nn.Conv2d(30, 20, 3), nn.Conv2d(20, 3, 3)]
    for layer, place in zip(theirs, (1, 5, 9), strict=True):
        weight = variables[place]
        assert weight.shape == layer.weight.shape
        assert weight.std().item() == pytest.approx(layer.weight.std().item(), rel=0.1)
        assert weight.abs().max().item() == pytest.approx(layer.weight.abs().max().item(), rel=0.02)
    assert variables[0].std().item() == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("size", [(9, 7), (5, 16), (1, 3)])
def test_odd_sizes_are_made_exactly(size: tuple[int, int]) -> None:
    canvas = LatentUpsampler(size, latent=5, widths=(6, 4))
    variables = canvas.start((4, 2, *size), torch.Generator().manual_seed(0))
    images = canvas.render(variables)
    assert images.shape == (4, 2, *size)
    assert images.mean((0, 2, 3)).abs().max().item() < 1e-5


@pytest.mark.parametrize("size", [(8, 12), (10, 12), (5, 16)])
def test_values_and_gradients_are_those_of_upsampling_and_a_convolution(
    size: tuple[int, int],
) -> None:
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.double).requires_grad_()

    x, weight, bias = drawn(2, 7, -(-size[0] // 2), -(-size[1] // 2)), drawn(5, 7, 3, 3), drawn(5)
    found = latent_upsampler._upsampled_convolution(x, weight, bias, size)
    upsampled = x[:, :, torch.arange(size[0]) * x.shape[2] // size[0]]
    upsampled = upsampled[:, :, :, torch.arange(size[1]) * x.shape[3] // size[1]]
    expected = nn.functional.conv2d(upsampled, weight, bias, padding=1)
    torch.testing.assert_close(found, expected)
    slope = drawn(*expected.shape).detach()
    for own, theirs in zip(
        torch.autograd.grad(found, (x, weight, bias), slope),
        torch.autograd.grad(expected, (x, weight, bias), slope),
        strict=True,
    ):
        torch.testing.assert_close(own, theirs)


def test_pixels_are_float32_where_the_convolutions_are_not() -> None:
    canvas = LatentUpsampler((8, 12), latent=5, widths=(6, 4))
    variables = canvas.start((7, 3, 8, 12), torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        half = canvas.render(variables)
    assert half.dtype == torch.float32
    exact = canvas.render(variables)
    assert 0 < (half - exact).abs().max() < 0.2
    # Not values of bfloat16: these would be so after a round trip.
    assert (half.bfloat16().float() - half).abs().max() > 0


def test_it_compiles_with_its_gradient() -> None:
    canvas = LatentUpsampler((8, 12), latent=5, widths=(6, 4))
    variables = [
        v.contiguous(memory_format=torch.channels_last) if v.dim() == 4 else v
        for v in canvas.start((3, 3, 8, 12), torch.Generator().manual_seed(0))
    ]

    def gradients(render: Any) -> tuple[torch.Tensor, ...]:
        given = [v.detach().requires_grad_() for v in variables]
        return torch.autograd.grad(render(given).pow(3).sum(), given)

    compiled = torch.compile(canvas.render, backend="aot_eager", fullgraph=True)
    for found, expected in zip(gradients(compiled), gradients(canvas.render), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
