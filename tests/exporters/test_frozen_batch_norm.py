"""Frozen BatchNorm goes into the weight of the layer before it, and into no other's."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.exporters.certificate import certify
from emptyset.exporters.frozen_batch_norm import factor_and_bias, fold_frozen_batch_norm
from emptyset.exporters.kernels import session
from emptyset.exporters.onnx import export
from emptyset.exporters.simulation import simulate
from emptyset.graph.operators import name_of, weighted_layers

FROZEN = {"plan": "every_layer", "batch_norm": "frozen"}


class Twice(nn.Module):
    """One convolution, with BatchNorm behind both calls, behind one, or another behind each."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__()
        self.stem, self.again = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 5, 3, padding=1)
        self.norms = nn.ModuleDict(
            {"a": nn.BatchNorm2d(5), "b": nn.BatchNorm2d(5), "none": nn.Identity()}
        )
        self.last, self.calls = nn.Linear(5, 4), (first, second)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for name in self.calls:
            x = F.relu(self.norms[name](self.again(x)))
        return self.last(x.mean((2, 3)))


class Tokens(nn.Module):
    """BatchNorm along the tokens of a linear: as many as its channels, or fewer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 5, 3, padding=1), nn.Linear(50, channels)
        self.norm, self.last = nn.BatchNorm1d(8), nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = F.relu(self.stem(x)).permute(0, 2, 1, 3).flatten(2)
        return self.last(F.relu(self.norm(self.inner(rows))).mean(1))


CASES = {
    "one behind both calls": Twice("a", "a"),
    "behind the first call": Twice("a", "none"),
    "behind the second call": Twice("none", "a"),
    "another behind each call": Twice("a", "b"),
    "as many tokens as channels": Tokens(8),
    "fewer tokens than channels": Tokens(9),
}


@pytest.mark.parametrize("case", CASES)
def test_the_file_computes_what_the_student_does(case: str, calibrated, tmp_path: Path) -> None:
    student, images = calibrated(CASES[case], "w8a8", **FROZEN)
    for name, parameter in student.program.named_parameters():
        if name.endswith("frozen_weight"):
            with torch.no_grad():
                parameter[1] *= -1
    artefact = export(student, tmp_path / "model.onnx")
    (logits,) = session(artefact.path).run(None, {"images": images.images.numpy()})
    expected = student(images.images)
    # Biases, which only the file rounds, may move a code.
    gap = (torch.from_numpy(logits) - expected).abs().max() / expected.abs().max()
    assert gap < 0.01
    certificate = certify(artefact.path, student, images, simulation=artefact.simulation)
    assert certificate.holds, certificate.fault


def test_both_calls_take_it_in(calibrated) -> None:
    student, _ = calibrated(Twice("a", "b"), "w8a8", **FROZEN)
    kinds = {name_of(node) for node in simulate(student).program.graph.nodes}
    assert not kinds & {"sub", "mul", "add"}


def test_factor_and_bias_are_those_of_layer_and_batch_norm_together(calibrated) -> None:
    student, _ = calibrated(Twice("none", "b"), "w8a8", **FROZEN)
    module, program = student.teacher.module, student.program
    *_, layer, _ = weighted_layers(program)
    chain = [layer]
    while len(chain) < 5:
        chain.append(next(iter(chain[-1].users)))
    factor, bias = factor_and_bias(program, layer, chain[1:])
    norm = module.norms["b"]
    for channel in range(5):
        scale = norm.weight[channel] / (norm.running_var[channel] + norm.eps) ** 0.5
        shift = (module.again.bias[channel] - norm.running_mean[channel]) * scale
        assert factor[channel].item() == pytest.approx(scale.item(), rel=1e-6)
        assert bias[channel].item() == pytest.approx((shift + norm.bias[channel]).item(), abs=1e-6)
    assert fold_frozen_batch_norm(program) == 0  # no codes yet: nothing to fold into
