"""Products with parameters, however written, are layers with quantized weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from emptyset.exporters.certificate import certify
from emptyset.exporters.onnx import export
from emptyset.graph.capture import capture
from emptyset.graph.operators import name_of, weighted_layers


class Product(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(6, 5)
        self.matrix = nn.Parameter(torch.randn(8, 6) * 0.3)
        self.offset = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        if self.kind == "tokens":
            x = (x.flatten(2).transpose(1, 2) @ self.matrix + self.offset).mean(1)
        elif self.kind == "mm":
            x = torch.mm(x.mean((2, 3)), self.matrix)
        elif self.kind == "turned":
            x = x.mean((2, 3)) @ F.normalize(self.matrix.t(), dim=0).t()
        elif self.kind == "addmm":
            x = torch.addmm(self.offset, x.mean((2, 3)), self.matrix)
        elif self.kind == "one row":
            x = torch.addmm(self.offset[None], x.mean((2, 3)), self.matrix)
        else:
            x = torch.addmm(self.offset, x.mean((2, 3)), self.matrix, beta=0.5, alpha=3)
        return self.head(F.relu(x))


class Row(nn.Module):
    """Transposed convolution of a row, then BatchNorm."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 8, 3, stride=2)
        self.wider = nn.ConvTranspose1d(8, 6, 4, **settings)
        self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 5)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x.flatten(2)))
        return self.head(F.relu(self.norm(self.wider(x))).mean(-1))


def _normalised() -> nn.Module:
    network = Row()
    weight_norm(network.wider)
    return network


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{
        kind: lambda kind=kind: Product(kind)
        for kind in ("tokens", "mm", "turned", "addmm", "one row", "scaled")
    },
    "row": Row,
    "row, normalised": lambda: _normalised(),
    "row, all settings": lambda: Row(
        stride=3, padding=1, output_padding=2, groups=2, dilation=2, bias=False
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_they_are_quantized_and_the_file_computes_them(
    name: str, calibrated: Callable[..., Any], tmp_path: Any
) -> None:
    net = NETWORKS[name]().requires_grad_(False).eval()
    student, images = calibrated(net, "w8a8")
    layers = {layer.name: layer for layer in student.layers()}
    # Only a plain parameter has a name to give.
    hidden = {"turned": "weight"}.get(name, "wider" if name.startswith("row") else "matrix")
    assert list(layers) == ["conv", hidden, "head"]
    assert layers[hidden].weight_quantizer is not None
    with student.float_mode():
        torch.testing.assert_close(student(images.images), net(images.images), atol=1e-5, rtol=1e-5)
    artefact = export(student, tmp_path / "model.onnx")
    certificate = certify(artefact.path, student, images, simulation=artefact.simulation)
    assert certificate.holds, certificate.fault


def test_batch_norm_behind_a_row_is_folded(calibrated: Callable[..., Any]) -> None:
    student, _ = calibrated(Row().requires_grad_(False).eval(), "w8a8")
    assert "batch_norm" not in {name_of(node) for node in student.program.graph.nodes}


class Heads(nn.Module):
    """Two matrices of one module that has nothing else; a third is read in two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ParameterList([torch.randn(8, 6) * 0.3, torch.randn(6, 7) * 0.3])
        self.shared = nn.Parameter(torch.randn(7, 5))
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x)).mean((2, 3)) @ self.inner[0]
        x = F.relu(F.relu(x) @ self.inner[1]) @ self.shared
        return x + self.shared.mean()


def test_layers_are_called_after_their_matrices(calibrated: Callable[..., Any]) -> None:
    net = Heads().requires_grad_(False)
    student, images = calibrated(net, "w8a8")
    # The name of the third is taken by the parameter itself.
    names = [layer.name for layer in student.layers()]
    assert names == ["conv", "inner.0", "inner.1", "shared_2"]
    with student.float_mode():
        torch.testing.assert_close(student(images.images), net(images.images), atol=1e-5, rtol=1e-5)


class Odd(nn.Module):
    """Products that are no layers: of whole and of complex numbers, and of parameters alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.register_buffer("whole", torch.arange(30).view(6, 5))
        self.register_buffer("waves", torch.fft.fft(torch.eye(6)))
        self.weight = nn.Parameter(torch.randn(5, 6))
        self.low, self.high = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x)).mean((2, 3))
        adapted = F.linear(x, self.weight + (0.5 * self.high) @ self.low)
        counted = ((100 * x).round().long() @ self.whole).float()
        turned = (x.to(torch.complex64) @ self.waves).abs()
        return adapted + counted / 100 + turned[:, :5]


def test_odd_products_are_left_alone() -> None:
    net = Odd().requires_grad_(False).eval()
    graph = capture(net, torch.rand(2, 3, 7, 9))
    assert [name_of(node) for node in weighted_layers(graph)] == ["conv2d", "linear"]
    x = torch.rand(5, 3, 7, 9)
    torch.testing.assert_close(graph(x), net(x))


def test_fixed_matrices_stay_buffers_and_equal_ones_stay_apart() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3)
            self.register_buffer("cosines", torch.randn(6, 6))
            self.first, self.second = (nn.Parameter(torch.zeros(6, 6)) for _ in range(2))
            self.tied = nn.Parameter(torch.randn(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.conv(x)).mean((2, 3)) @ self.cosines
            x = F.relu(x @ self.first + 1) @ self.second + self.first.sum() + self.second.sum()
            return F.relu(x @ self.tied) @ self.tied

    graph = capture(Fixed().requires_grad_(False), torch.rand(2, 3, 7, 9))
    targets = [str(node.args[1].target) for node in weighted_layers(graph)]
    assert targets == [
        "conv.weight", "cosines.weight", "first_2.weight", "second_2.weight", "tied.weight",
        "tied.weight",
    ]  # fmt: skip
    assert "cosines.weight" in dict(graph.named_buffers())
    assert "cosines.weight" not in dict(graph.named_parameters())


def test_products_of_images_stay_products() -> None:
    class Gram(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(36, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x).flatten(2)
            return self.head((x @ x.transpose(1, 2)).flatten(1))

    graph = capture(Gram().eval(), torch.rand(2, 3, 7, 9))
    assert [name_of(node) for node in weighted_layers(graph)] == ["conv2d", "linear"]
    assert "matmul" in {name_of(node) for node in graph.graph.nodes}
