"""Every layer of the file is found, whatever the exporter calls its output."""

import pytest
import torch
import torch.nn.functional as F
from in_turn import in_turn
from torch import Tensor, nn


def normalised(layer: nn.Module, channels: int) -> nn.Module:
    return nn.Sequential(layer, nn.BatchNorm2d(channels), nn.ReLU())


class Middle(nn.Module):
    """A layer between two convolutions, both with a bias of their own to be mixed up with."""

    def __init__(self, middle: nn.Module, width: int) -> None:
        super().__init__()
        self.first, self.middle = normalised(nn.Conv2d(3, 6, 3, padding=1), 6), middle
        self.third, self.last = normalised(nn.Conv2d(width, 7, 3), 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.third(self.middle(self.first(x))).mean((2, 3)))


LAYERS = {
    "same": lambda: nn.Conv2d(6, 8, 3, padding="same"),
    "same, uneven": lambda: nn.Conv2d(6, 8, (4, 3), padding="same", dilation=(1, 2), groups=2),
    "valid": lambda: nn.Conv2d(6, 8, 2, padding="valid"),
    "transposed": lambda: nn.ConvTranspose2d(6, 8, 3, 2, 1),
}


@pytest.mark.parametrize(("what", "bits"), in_turn(LAYERS, ("w8a8", "w4a4")))
@pytest.mark.parametrize("batch_norm", [False, True], ids=["with a bias", "with BatchNorm"])
def test_layers_that_the_exporter_names_otherwise_keep_their_bias(
    what: str, batch_norm: bool, bits: str, shipped
) -> None:
    layer = LAYERS[what]()
    middle = normalised(layer, 8) if batch_norm else nn.Sequential(layer, nn.ReLU())
    artefact = shipped(Middle(middle, 8), bits)
    # Four biases: the layer's, and those around it, which its name must not shift.
    assert len(artefact.simulation.biases) == 4


class TwiceTransposed(nn.Module):
    """One transposed convolution on two inputs: one weight, two biases, both named otherwise."""

    def __init__(self, *, chained: bool) -> None:
        super().__init__()
        self.first, self.other = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3)
        self.wide, self.last = nn.ConvTranspose2d(6, 6, 2, 2), nn.Linear(6, 5)
        self.chained = chained

    def forward(self, x: Tensor) -> Tensor:
        one = F.relu(self.wide(F.relu(self.first(x))))
        two = F.relu(self.wide(one if self.chained else F.relu(9 * self.other(x))))
        return self.last(one.mean((2, 3)) + two.mean((2, 3)))


@pytest.mark.parametrize("chained", [True, False], ids=["in a row", "side by side"])
def test_a_transposed_convolution_called_twice_keeps_both_its_biases(
    chained: bool, shipped
) -> None:
    artefact = shipped(TwiceTransposed(chained=chained))
    scales = [b.scale for b in artefact.simulation.biases.values() if len(b.codes) == 6]
    assert len({tuple(scale.tolist()) for scale in scales}) == len(scales)


class EqualWeights(nn.Module):
    """Two layers of equal weights and unequal biases."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3)
        self.left, self.right = nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 3)
        self.right.weight = nn.Parameter(self.left.weight.detach().clone())
        self.last = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.last((F.relu(self.left(x)) + 2 * torch.sigmoid(self.right(x))).mean((2, 3)))


def test_layers_of_equal_weights_keep_their_own_biases(shipped) -> None:
    artefact = shipped(EqualWeights())
    assert len(artefact.simulation.biases) == 4
