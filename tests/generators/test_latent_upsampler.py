"""Genie's generator against the same network built of torch's layers."""

import pytest
import torch
from torch import nn

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
