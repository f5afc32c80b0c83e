"""Real weights trained by others, where they lie beside the clone."""

import sys
from pathlib import Path

import pytest
import torch
from stored_arrays import arrays_of

from emptyset.teachers import load_teacher

SHARED = Path(__file__).parents[3] / "shared"

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not SHARED.is_dir(), reason="no third-party weights beside the clone"),
]


def test_a_network_of_others_reaches_its_published_accuracy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(SHARED / "weights")
    name = "cifar10_resnet20_akamaster"
    teacher = load_teacher(
        f"file:{name}.safetensors",
        model="networks:build",
        model_args={"name": name},
        input_shape=(3, 32, 32),
        mean=[value / 255 for value in (123.675, 116.28, 103.53)],
        std=[value / 255 for value in (58.395, 57.12, 57.375)],
    )
    monkeypatch.delitem(sys.modules, "networks")
    stored = arrays_of(SHARED / "data" / "cifar10" / "test.npz")
    pixels = torch.from_numpy(stored["images"][:1000]).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        predicted = teacher.module(teacher.input.normalise(pixels)).argmax(1)
    top1 = (predicted.numpy() == stored["labels"][:1000]).mean() * 100
    # Published: 91.73 on 10,000 images; three standard errors of 1,000.
    assert top1 == pytest.approx(91.73, abs=2.6)
