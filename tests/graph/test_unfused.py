"""torchao's own folding is off while it places quantizers, and only then."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torchao.quantization.pt2e import quantize_pt2e

from emptyset.exporters.simulation import simulate
from emptyset.graph.capture import capture
from emptyset.graph.operators import name_of
from emptyset.graph.unfused import FOLDER, FUSERS, prepare_unfused
from emptyset.quantizers.bits import Bits
from emptyset.registry import plans


def test_a_batch_norm_behind_a_convolution_stays() -> None:
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)).eval()
    entry = plans.get("edges_8bit")
    quantizer = entry.make(entry.config()).quantizer(Bits.parse("w4a4"), {})
    prepared = prepare_unfused(capture(module, torch.zeros(2, 3, 8, 10)), quantizer)
    kinds = [name_of(node) for node in prepared.graph.nodes if name_of(node)]
    assert kinds == ["conv2d", "batch_norm"]


def test_torchao_does_not_look_for_batch_norms_when_it_converts(
    calibrated: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.BatchNorm2d(5), nn.Flatten(), nn.LazyLinear(4)
    )
    module(torch.rand(6, 3, 8, 10))
    student, images = calibrated(module.requires_grad_(False).eval(), "w4a4", plan="every_layer")

    def slow(program: object) -> object:
        raise AssertionError

    monkeypatch.setattr(quantize_pt2e, FOLDER, slow)
    simulation = simulate(student)
    assert "batch_norm" in [name_of(node) for node in simulation.program.graph.nodes]
    torch.testing.assert_close(simulation(images.images), student(images.images), atol=0.2, rtol=0)
    assert getattr(quantize_pt2e, FOLDER) is slow


def test_torchaos_folding_is_back_afterwards_even_after_an_error() -> None:
    before = [getattr(quantize_pt2e, name) for name in FUSERS]

    class Failing:
        def transform_for_annotation(self, model: object) -> object:
            now = zip(FUSERS, before, strict=True)
            assert all(getattr(quantize_pt2e, name) is not old for name, old in now)
            raise KeyError

    with pytest.raises(KeyError):
        prepare_unfused(capture(nn.Conv2d(3, 5, 3), torch.zeros(2, 3, 8, 10)), Failing())
    assert [getattr(quantize_pt2e, name) for name in FUSERS] == before
