"""Means run on integers, whatever they go over, and the file computes them."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from changed_files import Values, add, own_constant, times
from in_turn import in_turn
from torch import Tensor, nn

from emptyset.exporters.certificate import certify

MEANS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "channels": (lambda x: x.mean(1), 8 * 10),
    "channels, kept": (lambda x: x.mean(1, keepdim=True), 8 * 10),
    "tokens": (lambda x: x.flatten(2).transpose(1, 2).mean(1), 6),
    "tokens, kept": (lambda x: x.flatten(2).transpose(1, 2).mean(1, keepdim=True), 6),
    "a row": (lambda x: x.flatten(2).mean(-1), 6),
    "a row, kept": (lambda x: x.flatten(2).mean(-1, keepdim=True), 6),
    "a map": (lambda x: x.mean((-1, -2)), 6),
    "a map, channels last": (lambda x: x.permute(0, 2, 3, 1).mean((1, 2)), 6),
    "a map, channels last, kept": (lambda x: x.permute(0, 2, 3, 1).mean((2, 1), keepdim=True), 6),
}


class Mean(nn.Module):
    def __init__(self, mean: Callable[[Tensor], Tensor], features: int) -> None:
        super().__init__()
        self.conv, self.next = nn.Conv2d(3, 7, 3, padding=1), nn.Conv2d(7, 6, 3, padding=1)
        self.mean, self.head = mean, nn.Linear(features, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.next(F.relu(self.conv(x))))
        return self.head(self.mean(x).flatten(1))


@pytest.mark.parametrize(("kind", "bits"), in_turn(MEANS, ("w8a8", "w4a4")))
def test_a_mean_runs_on_integers(kind: str, bits: str, shipped) -> None:
    artefact = shipped(Mean(*MEANS[kind]), bits)
    assert artefact.fallbacks == []
    assert artefact.integer_share == 1.0


class Both(nn.Module):
    """Means over as many channels of a map as there are tokens of another tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(8 * 10 + 6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        tokens = x.flatten(2)[:, :, 4:10].transpose(1, 2)
        return self.head(torch.cat([x.mean(1).flatten(1), tokens.mean(1)], 1))


def test_means_over_as_many_of_another_rank_have_weights_of_their_own(shipped) -> None:
    assert shipped(Both()).integer_share == 1.0


@pytest.mark.parametrize("axes", [(3,), (1, 2, 3)], ids=["columns", "everything"])
def test_a_mean_without_an_integer_form_stays(axes: tuple[int, ...], shipped) -> None:
    features = 6 * 8 if axes == (3,) else 1
    artefact = shipped(Mean(lambda x: x.mean(axes, keepdim=True), features))
    assert [fallback.operator for fallback in artefact.fallbacks] == ["ReduceMean"]


class SpatialAttention(nn.Module):
    """CBAM's: mean and largest value over channels of what a ReLU gave decide where to look."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 16, 3, 2), nn.Linear(16, 5)
        self.where = nn.Conv2d(2, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        seen = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return self.head((x * torch.sigmoid(self.where(seen))).mean((2, 3)))


@pytest.mark.parametrize(
    ("position", "change"), [(0, add(1, 3)), (1, times(1 + 1e-6)), (2, add(1))]
)
def test_a_changed_weight_of_a_mean_is_found(
    position: int, change: Values, exported, tmp_path: Path
) -> None:
    """A code of 2, a step whose last bits differ, a zero point of 1."""
    student, images, artefact = exported(Mean(*MEANS["channels"]))
    model = onnx.load(artefact.path)
    (equal,) = [n for n in model.graph.node if n.output[0].startswith("equal_parts")]
    own_constant(model, equal, position, change)
    onnx.save(model, tmp_path / "changed.onnx")
    fault = certify(tmp_path / "changed.onnx", student, images).fault
    assert fault is not None
    assert "not all equal parts" in fault


def test_means_of_few_codes_fall_alike_however_they_are_summed(shipped) -> None:
    artefact = shipped(SpatialAttention())
    assert artefact.integer_share == 1.0
