"""torchao's own folding is off while it places quantizers, and only then."""

import pytest
import torch
from torch import nn
from torchao.quantization.pt2e import quantize_pt2e

from emptyset.graph.capture import capture
from emptyset.graph.operators import name_of
from emptyset.graph.unfused import FUSERS, prepare_unfused
from emptyset.quantizers.bits import Bits
from emptyset.registry import plans


def test_a_batch_norm_behind_a_convolution_stays() -> None:
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)).eval()
    entry = plans.get("edges_8bit")
    quantizer = entry.make(entry.config()).quantizer(Bits.parse("w4a4"), {})
    prepared = prepare_unfused(capture(module, torch.zeros(2, 3, 8, 10)), quantizer)
    kinds = [name_of(node) for node in prepared.graph.nodes if name_of(node)]
    assert kinds == ["conv2d", "batch_norm"]


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
