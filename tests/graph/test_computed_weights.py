"""Weights computed of parameters are quantized like any other; those of images stay computed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from emptyset.exporters.certificate import certify
from emptyset.exporters.onnx import export
from emptyset.graph.capture import capture
from emptyset.graph.operators import weighted_layers
from emptyset.graph.student import prepare


class Standardised(nn.Conv2d):
    """Weights of mean 0 and variance 1 per output channel, written as timm writes it."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        rows = F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(x, rows.reshape_as(self.weight), self.bias, self.stride, self.padding)


class Scaled(nn.Conv2d):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.tensor(1.7))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.gain, self.bias * self.gain, padding=self.padding)


KINDS: dict[str, Callable[..., nn.Module]] = {
    "weight_norm": lambda *a: parametrizations.weight_norm(nn.Conv2d(*a)),
    "spectral_norm": lambda *a: parametrizations.spectral_norm(nn.Conv2d(*a)),
    "standardised": Standardised,
    "scaled": Scaled,
}


def network(kind: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            KINDS[kind](3, 8, 3), nn.ReLU(), KINDS[kind](8, 6, 1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
        ).requires_grad_(False).eval()  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_layers_with_computed_weights_are_layers_under_their_own_names(
    kind: str, calibrated: Callable[..., Any], tmp_path: Any
) -> None:
    student, images = calibrated(network(kind), "w4a4", plan="every_layer")
    assert [layer.name for layer in student.layers()] == ["0", "2", "6"]
    assert [layer.weight_quantizer for layer in student.layers()] == [
        "0.weight", "2.weight", "6.weight",
    ]  # fmt: skip
    with student.float_mode():
        torch.testing.assert_close(
            student(images.images), student.teacher.module(images.images), atol=1e-5, rtol=1e-5
        )
    artefact = export(student, tmp_path / "model.onnx")
    assert certify(artefact.path, student, images, simulation=artefact.simulation).holds


def test_the_weight_is_what_the_network_computes() -> None:
    net = network("standardised")
    graph = capture(net, torch.rand(2, 3, 7, 9))
    weight = graph.get_parameter("0.weight").flatten(1)
    torch.testing.assert_close(weight.mean(1), torch.zeros(8), atol=1e-6, rtol=0)
    own = net[0].weight.flatten(1)
    variance, mean = torch.var_mean(own, 1, correction=0, keepdim=True)
    torch.testing.assert_close(weight, (own - mean) / (variance + 1e-6).sqrt())
    assert not [n for n in graph.graph.nodes if "batch_norm" in str(n.target)]


class Kernels(nn.Module):
    """One set of kernels in two roles, scaled once by a number and once by the image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4, 4, 3, 3))
        self.stem, self.last = nn.Conv2d(3, 4, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        plain = F.conv2d(x, self.weight, padding=1)
        scaled = F.conv2d(plain, self.weight * 0.5, padding=1)
        by_image = F.conv2d(x, self.weight * x.mean(), padding=1)
        return self.last((scaled + by_image).mean((2, 3)))


def test_a_name_that_is_taken_is_left_and_weights_of_images_stay_computed() -> None:
    net = Kernels().requires_grad_(False)
    graph = capture(net, torch.rand(2, 3, 7, 9))
    paths = [str(node.args[1].target) for node in weighted_layers(graph)]
    assert paths == ["stem.weight", "weight.weight", "weight_2.weight", "last.weight"]
    assert torch.equal(graph.get_parameter("weight.weight"), net.weight)
    assert torch.equal(graph.get_parameter("weight_2.weight"), net.weight * 0.5)
    x = torch.rand(5, 3, 7, 9)
    torch.testing.assert_close(graph(x), net(x))


def test_a_module_called_twice_keeps_one_weight(teacher_of: Callable[..., Any]) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inner = nn.Conv2d(3, 4, 1), Scaled(4, 4, 3, padding=1)
            self.last = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.inner(F.relu(self.inner(F.relu(self.stem(x)))))
            return self.last(x.mean((2, 3)))

    student = prepare(teacher_of(Twice().requires_grad_(False)), "w8a8")
    assert [layer.name for layer in student.layers()] == ["stem", "inner", "inner", "last"]
    assert [name for name in student.state_dict() if name.startswith("inner.")] == [
        "inner.weight", "inner.bias",
    ]  # fmt: skip


class Norm(nn.BatchNorm2d):
    """Parameters computed, and cut to the channels that are used."""

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__(channels)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        used = slice(0, x.shape[1])
        weight = {
            "absolute": self.weight.abs() + self.eps, "offset": 1 + self.weight,
            "cut": self.weight,
        }[self.kind]  # fmt: skip
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(x, mean[used], var[used], weight[used], self.bias[used], eps=self.eps)


class Normed(nn.Module):
    """One norm that a convolution absorbs, one that nothing does."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 6, 3, bias=False), nn.Linear(6, 5)
        channels = 8 if kind == "cut" else 6
        self.norm, self.alone = Norm(channels, kind), Norm(channels, kind)
        for norm in (self.norm, self.alone):
            for value in (norm.weight, norm.bias, norm.running_mean):
                value.data.copy_(torch.randn(channels))
            norm.running_var.copy_(torch.rand(channels) + 0.5)
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.relu(self.norm(self.conv(x))), 2)
        return self.last(F.relu(self.alone(x)).mean((2, 3)))


@pytest.mark.parametrize("kind", ["absolute", "offset", "cut"])
@pytest.mark.parametrize(("plan", "batch_norm"), [("integer", "fold"), ("every_layer", "frozen")])
def test_computed_parameters_of_batch_norm_are_its_parameters(
    kind: str, plan: str, batch_norm: str, calibrated: Callable[..., Any], tmp_path: Any
) -> None:
    net = Normed(kind)
    student, images = calibrated(net, "w8a8", plan=plan, batch_norm=batch_norm)
    with student.float_mode():
        torch.testing.assert_close(student(images.images), net(images.images), atol=1e-5, rtol=1e-5)
    artefact = export(student, tmp_path / "model.onnx")
    assert certify(artefact.path, student, images, simulation=artefact.simulation).holds
    trained = {path for path, _ in student.program.named_parameters()}
    assert not [path for path in trained if "running" in path]


def test_computed_statistics_stay_buffers() -> None:
    graph = capture(Normed("cut"), torch.rand(2, 3, 7, 9))
    buffers = dict(graph.named_buffers())
    assert {"norm.running_mean", "alone.running_var"} <= set(buffers)
    assert len(buffers["alone.running_var"]) == 6


@pytest.mark.parametrize("kind", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_weights_that_hooks_computed_with_gradients_are_layers_too(
    kind: Callable[..., nn.Module], calibrated: Callable[..., Any]
) -> None:
    net = nn.Sequential(kind(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(192, 5)).eval()
    net(torch.rand(2, 3, 8, 10))
    assert not net[0].weight.is_leaf
    student, images = calibrated(net, "w8a8")
    assert [layer.name for layer in student.layers()] == ["0", "3"]
    with torch.no_grad(), student.float_mode():
        torch.testing.assert_close(student(images.images), net(images.images), atol=1e-5, rtol=1e-5)
