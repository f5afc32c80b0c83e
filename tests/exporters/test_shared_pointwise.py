"""A 1x1 convolution that is called twice, on one position or on a map."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelAttention(nn.Module):
    """CBAM's: mean and largest value of every channel go through the same two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
        self.narrow, self.wide = nn.Conv2d(8, 4, 1, bias=False), nn.Conv2d(4, 8, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        mean, largest = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        gate = sum(self.wide(F.relu(self.narrow(one))) for one in (mean, largest))
        return self.head((x * torch.sigmoid(gate)).mean((2, 3)))


class MapAndMean(nn.Module):
    """One call reads the map, the other its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.both = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        gate = torch.sigmoid(self.both(x.mean((2, 3), keepdim=True)))
        return self.head((self.both(x) * gate).mean((2, 3)))


@pytest.mark.parametrize("plan", ["integer", "edges_8bit", "every_layer"])
@pytest.mark.parametrize("build", [ChannelAttention, MapAndMean])
def test_the_file_computes_both_calls(build: type[nn.Module], plan: str, shipped) -> None:
    artefact = shipped(build().requires_grad_(False).eval(), plan=plan)
    if plan == "integer":
        assert artefact.integer_share == 1.0
