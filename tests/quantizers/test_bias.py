"""Biases in whole steps of input scale times weight scale."""

import pytest
import torch

from emptyset.quantizers.affine import PerChannelAffineFakeQuantizer, PerTensorAffineFakeQuantizer
from emptyset.quantizers.bias import BiasFakeQuantizer, round_to_steps


@pytest.fixture
def bias_quantizer() -> BiasFakeQuantizer:
    inputs = PerTensorAffineFakeQuantizer(
        dtype=torch.uint8, quant_min=0, quant_max=255, qscheme=torch.per_tensor_affine
    )
    weight = PerChannelAffineFakeQuantizer(
        dtype=torch.int8, quant_min=-127, quant_max=127,
        qscheme=torch.per_channel_symmetric, ch_axis=0,
    )  # fmt: skip
    inputs.set_parameters(torch.tensor(0.5), torch.tensor(3))
    weight.set_parameters(torch.tensor([0.25, 0.5, 2.0]), torch.zeros(3))
    return BiasFakeQuantizer(inputs, weight)


def test_a_bias_is_rounded_to_whole_steps(bias_quantizer: BiasFakeQuantizer) -> None:
    # Steps 0.125, 0.25, 1.
    assert bias_quantizer(torch.tensor([0.2, -0.4, 1.6])).tolist() == [0.25, -0.5, 2.0]


@pytest.mark.parametrize("which", [0, 1])
def test_it_is_off_with_its_input_or_weight(bias_quantizer: BiasFakeQuantizer, which: int) -> None:
    bias_quantizer._owners[which].enabled = False
    bias = torch.tensor([0.2, -0.4, 1.6])
    assert bias_quantizer(bias) is bias


def test_the_gradient_passes_straight_through(bias_quantizer: BiasFakeQuantizer) -> None:
    bias = torch.tensor([0.2, -0.4, 1.6], requires_grad=True)
    (bias_quantizer(bias) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert bias.grad is not None
    assert bias.grad.tolist() == [1, 2, 3]


def test_codes_are_whole_numbers_of_steps() -> None:
    codes, value = round_to_steps(torch.tensor([1.0, -0.875]), torch.tensor([0.3, 0.25]))
    assert codes.tolist() == [3, -4]  # -3.5 rounds to the even -4
    assert value.tolist() == pytest.approx([0.9, -1.0])
