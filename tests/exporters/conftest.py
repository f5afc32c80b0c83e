"""Exported students."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.exporters.certificate import certify
from emptyset.exporters.kernels import session
from emptyset.exporters.onnx import Artefact, export
from emptyset.graph.student import Student
from emptyset.images.image_set import ImageSet
from emptyset.registry import refiners


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Networks draw their weights the same in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def exported(
    calibrated: Callable[..., tuple[Student, ImageSet]], tmp_path: Path
) -> Callable[..., tuple[Student, ImageSet, Artefact]]:
    def make(module: nn.Module, bits: str = "w8a8", **options: Any) -> Any:
        student, images = calibrated(module, bits, **options)
        return student, images, export(student, tmp_path / "model.onnx")

    return make


@pytest.fixture
def shipped(
    exported: Callable[..., tuple[Student, ImageSet, Artefact]],
) -> Callable[..., Artefact]:
    def make(module: nn.Module, bits: str = "w8a8", **options: Any) -> Artefact:
        """An artefact whose file gives what the student does, which in float is the network."""
        student, images, artefact = exported(module, bits, **options)
        given = images.images
        with student.float_mode():
            torch.testing.assert_close(student(given), module(given), atol=1e-5, rtol=1e-4)
        (logits,) = session(artefact.path).run(None, {"images": given.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), student(given), atol=1e-4, rtol=1e-4)
        certificate = certify(artefact.path, student, images, simulation=artefact.simulation)
        assert certificate.holds, certificate.fault
        return artefact

    return make


class Small(nn.Module):
    """Two convolutions, a residual addition, an average, a linear: every kind of rewriting."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.third = nn.Conv2d(6, 7, 3)
        self.last = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = F.relu(self.norm(self.second(x)) + x)
        return self.last(F.relu6(self.third(x)).mean((2, 3)))


@pytest.fixture
def small() -> nn.Module:
    return Small()


@pytest.fixture
def calibrate() -> Callable[[Student, Tensor], ImageSet]:
    def run(student: Student, images: Tensor) -> ImageSet:
        """Give the student its ranges; the images as a set."""
        entry, stored = refiners.get("calibrate"), ImageSet(images)
        entry.make(entry.config()).refine(student, stored, seed=0)
        return stored

    return run
