"""BatchNorm of a generator: plain, or with a gain and a shift for every class."""

import torch
from torch import Tensor, nn


class LabelledNorm(nn.Module):
    """BatchNorm whose gain and shift come from the labels where there are any.

        out = gain · (x − mean) / √(var + ε) + shift,   gain_n = Σ_c w_nc · gain_c

    With the shares λ of a mixture as weights w, gain and shift are its superposition: the *sum*
    over its K classes. Statistics are those of the batch; running ones are kept beside.

    Source: conditional BatchNorm, de Vries et al. 2017, arXiv:1707.00683, as in the generators of
        GDFQ and Qimera.

    Attributes:
        classes: C, or None: one gain and shift for all.
    """

    def __init__(self, channels: int, classes: int | None, *, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.classes = classes
        self.norm = nn.BatchNorm2d(channels, eps=epsilon, affine=classes is None)
        if classes is not None:
            self.gain = nn.Parameter(torch.empty(classes, channels))
            self.shift = nn.Parameter(torch.empty(classes, channels))

    def reset_parameters(self) -> None:
        """Gain 1, shift 0, for every class."""
        if self.classes is not None:
            nn.init.ones_(self.gain)
            nn.init.zeros_(self.shift)

    def forward(self, x_NCHW: Tensor, weights: Tensor | None) -> Tensor:
        """``x`` normalised, shaped as it.

        Args:
            x_NCHW: ``(N, C, H, W)``.
            weights: ``(N, classes)`` weight of each class; None where there are no classes.
        """
        x: Tensor = self.norm(x_NCHW)
        if self.classes is None:
            return x
        assert weights is not None
        gain, shift = (weights @ table for table in (self.gain, self.shift))
        scaled: Tensor = x * gain[:, :, None, None].to(x.dtype)
        return scaled + shift[:, :, None, None].to(x.dtype)
