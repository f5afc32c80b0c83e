"""Published plans leave biases to the runtime: the file holds those that it computes with."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.exporters.certificate import certify
from emptyset.exporters.simulation import simulate


class Padded(nn.Module):
    """Padding, as of TensorFlow, and a pool between a ReLU and its reader."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 7, 1)
        self.depthwise = nn.Conv2d(6, 6, 3, stride=2, groups=6)
        self.last = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(F.relu6(self.stem(x)), (0, 1, 0, 1))
        x = F.max_pool2d(F.relu6(self.depthwise(x)), 2, stride=1)
        return self.last(F.relu6(self.inner(x)).mean((2, 3)))


@pytest.fixture
def padded() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Padded().requires_grad_(False).eval()
    network.inner.weight[4] = 0.0
    network.inner.bias[4] = 3.0
    return network


@pytest.mark.parametrize("plan", ["every_layer", "edges_8bit"])
def test_padding_pools_and_channels_without_weights_keep_the_certificate(
    plan: str, padded: nn.Module, exported: Callable[..., Any]
) -> None:
    student, images, artefact = exported(padded, "w4a4", plan=plan)
    certificate = certify(artefact.path, student, images, simulation=artefact.simulation)
    assert certificate.holds, certificate.fault
    assert [len(bias.codes) for bias in artefact.simulation.biases.values()][:2] == [6, 7]
    assert max(int(b.codes.abs().max()) for b in artefact.simulation.biases.values()) <= 2**30


def test_a_layer_reads_the_quantizer_before_its_padding(
    padded: nn.Module, calibrated: Callable[..., Any]
) -> None:
    student, _ = calibrated(padded, "w4a4", plan="every_layer")
    reads = {layer.name: layer.input_quantizer for layer in student.layers()}
    assert reads["stem"] is None
    relu6 = [name for name, q in student.quantizers.items() if q.axis is None]
    assert reads["depthwise"] == relu6[0]
    assert reads["inner"] == relu6[1]


def test_only_the_scale_of_a_channel_without_weights_is_raised(
    padded: nn.Module, calibrated: Callable[..., Any]
) -> None:
    student, _ = calibrated(padded, "w4a4", plan="every_layer")
    quantizer = student.quantizers["inner.weight"]
    weight = padded.inner.weight
    assert torch.equal(quantizer(weight)[4], torch.zeros(6, 1, 1))
    # 3 in steps of the weight times steps of 6 / 15 is the largest bias that is allowed.
    step = student.quantizers[student.layers()[2].input_quantizer].scale.double()
    assert float(3 / (step * quantizer.scale[4].double())) == pytest.approx(2**30, rel=1e-6)
    assert simulate(student).raised == {"inner": 1}
