"""Which differences of one code are rounding: on a boundary all, near one a few."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from emptyset.exporters.certificate import certify
from emptyset.exporters.code_comparison import CodeComparison, NodeRecord
from emptyset.exporters.onnx import export
from emptyset.graph.student import prepare
from emptyset.images.image_set import ImageSet
from emptyset.registry import refiners
from emptyset.teachers.teacher import InputSpec, Teacher

COUNT = 400


def compared(off: float) -> NodeRecord:
    """What a comparison says where every code is the other one, ``off`` codes from a boundary."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    negative = graph.call_function(torch.ops.aten.neg.default, (x,))
    quantize = torch.ops.quantized_decomposed.quantize_per_tensor.default
    codes = graph.call_function(quantize, (negative, 1.0, 0, -128, 127, torch.int8))
    graph.output(codes)
    program = fx.GraphModule(nn.Module(), graph)
    values = torch.arange(COUNT).double().remainder(200) - 100
    # Exact values differ, so that each is counted.
    values = values - 0.5 - off * (1 + torch.arange(COUNT).double() / COUNT)
    other = -values.round() - 1
    assert ((-values - other) > 0.5).all()
    comparison = CodeComparison(SimpleNamespace(program=program))  # type: ignore[arg-type]
    comparison.compare(values[:, None], {codes.name: other[:, None].to(torch.int8).numpy()})
    (record,) = comparison.records()
    return record


@pytest.mark.parametrize(
    ("off", "ties", "limited", "wrong"),
    [
        (5e-6, COUNT, 0, None),
        (3e-5, COUNT, COUNT, f"{COUNT} of {COUNT} codes are ties"),
        (4.5e-4, COUNT, COUNT, f"{COUNT} of {COUNT} codes are ties"),
        (1.1e-3, 0, 0, "codes differ by up to 1 and are no rounding ties"),
        (2e-3, 0, 0, "codes differ by up to 1 and are no rounding ties"),
    ],
)
def test_on_the_boundary_near_it_and_beyond(
    off: float, ties: int, limited: int, wrong: str | None
) -> None:
    record = compared(off)
    assert (record.ties, record.distinct_ties) == (ties, limited)
    fault = record.fault()
    assert fault is None if wrong is None else wrong in str(fault)


class Centred(nn.Module):
    """Brings pixels from 0..1 to -1..1 itself; every second value lies between two codes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("middle", torch.full((1, 3, 1, 1), 0.5))
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.middle) / self.middle
        return self.head(F.relu(self.conv(x)).mean((2, 3)))


class Pooled(nn.Module):
    """Averages four codes of what a clip cut off: quarters and halves."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.next = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3)
        self.head = nn.Linear(6, 5)
        self.conv.weight.data.mul_(20)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.relu6(self.conv(x)), 2)
        return self.head(F.relu(self.next(x)).mean((2, 3)))


@pytest.mark.parametrize("build", [Centred, Pooled])
def test_values_on_boundaries_by_the_hundred_are_no_fault(
    build: Callable[[], nn.Module], tmp_path: Any
) -> None:
    module = build().requires_grad_(False).eval()
    spec = InputSpec((3, 16, 18), (0.0,) * 3, (1.0,) * 3)
    student = prepare(Teacher("test", module, spec), "w8a8")
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (48, 3, 16, 18), generator=generator)
    images = ImageSet(pixels.float() / 255)
    calibrate = refiners.get("calibrate")
    calibrate.make(calibrate.config()).refine(student, images)
    artefact = export(student, tmp_path / "model.onnx")
    certificate = certify(artefact.path, student, images, simulation=artefact.simulation)
    assert certificate.holds, certificate.fault
    inner = [node for node in certificate.nodes if node.operator != "placeholder"]
    # Else this test would prove nothing.
    assert max(node.ties for node in inner) > 20
    assert all(node.distinct_ties <= 3 for node in inner)
