"""The overflow rule on a network of others that needs it, where its weights are there."""

import sys
from pathlib import Path

import pytest
import torch

from emptyset.exporters.certificate import certify
from emptyset.exporters.onnx import export
from emptyset.graph.student import prepare
from emptyset.teachers import load_teacher

SHARED = Path(__file__).parents[3] / "shared"
NAME = "imagenet_mobilenetv1_025_keras"

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not SHARED.is_dir(), reason="no third-party weights beside the clone"),
]


def test_biases_of_mobilenetv1_stay_inside_int32(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, calibrate
) -> None:
    monkeypatch.chdir(SHARED / "weights")
    teacher = load_teacher(
        f"file:{NAME}.safetensors", model="networks:build", model_args={"name": NAME},
        input_shape=(3, 96, 96), mean=(0.5,) * 3, std=(0.5,) * 3,
    )  # fmt: skip
    monkeypatch.delitem(sys.modules, "networks")
    student = prepare(teacher, "w8a8")
    generator = torch.Generator().manual_seed(0)
    images = calibrate(student, torch.rand(8, 3, 96, 96, generator=generator) * 2 - 1)
    artefact = export(student, tmp_path / "model.onnx")
    largest = [int(bias.codes.abs().max()) for bias in artefact.simulation.biases.values()]
    # Its dead channels have tiny weights and plain biases: they stand at the bound now.
    assert max(largest) <= 2**30
    assert sum(code > 0.99 * 2**30 for code in largest) >= 1
    certificate = certify(artefact.path, student, images, limit=4, simulation=artefact.simulation)
    assert certificate.holds, certificate.fault
    assert any("weight scale raised" in note for note in artefact.notes)
