"""Biases as an integer runtime holds them: int32 with the scale of input times weight.

At 4 bits one such step can be as large as a step of the output, so a simulation that leaves biases
in float is not what the file computes.
"""

import torch
from torch import Tensor, nn

from emptyset.quantizers.affine import AffineFakeQuantizer


class BiasFakeQuantizer(nn.Module):
    """Rounds a bias ``(C,)`` to whole steps of ``scale_input * scale_weight``.

    Off whenever one of the two quantizers is off. Straight-through gradient to the bias, none to
    the scales.
    """

    def __init__(self, inputs: AffineFakeQuantizer, weight: AffineFakeQuantizer) -> None:
        super().__init__()
        # In a tuple, so that they are not registered a second time.
        self._owners = (inputs, weight)

    @property
    def owners(self) -> tuple[AffineFakeQuantizer, AffineFakeQuantizer]:
        """Quantizers of the layer's input and weight."""
        return self._owners

    def step(self) -> Tensor:
        """``(C,)`` float32 step, as the runtime computes it."""
        inputs, weight = self._owners
        return inputs.scale.detach() * weight.scale.detach()

    def forward(self, bias: Tensor) -> Tensor:
        """``(C,)`` bias in whole steps [units of the layer's output]."""
        if not all(owner.enabled for owner in self._owners):
            return bias
        with torch.no_grad():
            rounded = round_to_steps(bias, self.step())[1]
        return bias + (rounded - bias).detach() if bias.requires_grad else rounded


def round_to_steps(bias: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """int32 codes and the float32 bias they stand for, both shaped as ``bias``."""
    codes = (bias.detach().double() / step.double()).round()
    return codes.to(torch.int32), (codes * step.double()).float()
