"""First and second moments of a feature map, per image and channel, with one cheap gradient.

Every published BatchNorm-statistics loss needs means and variances, per image or over the batch,
and all of them follow from two numbers per image and channel. They are taken about the stored
mean, so that nothing cancels when a channel's mean is large beside its spread, and always in
float32, whatever the features' precision.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Elements of one group of images. Fresh memory for whole float32 feature maps costs more than the
# arithmetic on it.
_CACHED = 1 << 18


@dataclass(frozen=True)
class Elsewhere:
    """Moments of the images that are not in the batch, yet belong to the set that is matched.

    Attributes:
        shift: ``(C,)`` mean over their pixels of ``x − stored mean`` [feature units].
        square: ``(C,)`` mean over their pixels of ``(x − stored mean)²`` [units squared].
        images: How many they are, 0-dim; 0: the batch is all there is.
    """

    shift: Tensor
    square: Tensor
    images: Tensor


@dataclass(frozen=True)
class LayerStatistics:
    """Moments of one layer's input about the mean that the layer stored.

    With ``elsewhere``, the statistics "of the batch" have the values of the whole set. Their
    gradient is the batch's own, as if it were the set: that is the gradient of a loss of the whole
    set times the number of batches, so its weight against losses that are means over the batch is
    the same for any number of batches.

    Attributes:
        shift: ``(N, C)`` mean over the pixels of ``x − stored mean`` [feature units].
        square: ``(N, C)`` mean over the pixels of ``(x − stored mean)²`` [units squared].
        pixels: H · W.
        stored_var: ``(C,)`` variance that the layer stored [units squared].
        elsewhere: The rest of the set, or None where every batch is matched on its own.
    """

    shift: Tensor
    square: Tensor
    pixels: int
    stored_var: Tensor
    elsewhere: Elsewhere | None = None

    def image_variance(self) -> Tensor:
        """Unbiased variance over the pixels of each image, ``(N, C)`` [units squared]."""
        biased = (self.square - self.shift.square()).clamp(min=0.0)
        return biased * (self.pixels / max(self.pixels - 1, 1))

    def batch_shift(self) -> Tensor:
        """Batch mean less stored mean, ``(C,)`` [units]."""
        own = self.shift.mean(dim=0)
        return own if self.elsewhere is None else self._joined(own, self.elsewhere.shift)

    def batch_variance(self, *, correction: int) -> Tensor:
        """Variance over images and pixels, ``(C,)`` [units squared]; correction 0 is biased."""
        square = self.square.mean(dim=0)
        if self.elsewhere is not None:
            square = self._joined(square, self.elsewhere.square)
        biased = (square - self.batch_shift().square()).clamp(min=0.0)
        if not correction:
            return biased
        if self.elsewhere is None:
            count = self.pixels * len(self.shift)
            return biased * (count / max(count - correction, 1))
        counts = self.pixels * (self.elsewhere.images + len(self.shift))
        return biased * (counts / (counts - correction).clamp(min=1))

    def _joined(self, own_C: Tensor, other_C: Tensor) -> Tensor:
        """The set's mean of what has the mean ``own_C`` in the batch and ``other_C`` elsewhere."""
        assert self.elsewhere is not None
        images = self.elsewhere.images
        share = images / (images + len(self.shift))
        # Equal to the batch's own, to the last bit, where there is nothing elsewhere.
        return own_C + (share * (other_C - own_C)).detach()


def layer_statistics(
    features_NCHW: Tensor, stored_mean_C: Tensor, stored_var_C: Tensor
) -> LayerStatistics:
    """The moments of a feature map about the stored mean.

        shift = mean_hw(x − μ),  square = mean_hw((x − μ)²)

    Args:
        features_NCHW: Input of the layer, ``(N, C, H, W)``, any floating type; ``(N, C)`` counts
            as one pixel, ``(N, C, L)`` as L.
        stored_mean_C: μ, ``(C,)``.
        stored_var_C: ``(C,)``, carried along.

    Returns:
        The statistics, float32 (double where the features are).
    """
    if features_NCHW.dim() != 4:
        features_NCHW = features_NCHW.reshape(*features_NCHW.shape[:2], -1, 1)
    shift, square = _moments(features_NCHW, stored_mean_C)
    pixels = features_NCHW.shape[2] * features_NCHW.shape[3]
    return LayerStatistics(shift, square, pixels, stored_var_C)


def input_statistics(images_NCHW: Tensor) -> LayerStatistics:
    """The moments of standardised images, beside the mean 0 and variance 1 of the data.

    Args:
        images_NCHW: ``(N, C, H, W)`` [standardised pixel units].
    """
    zeros = images_NCHW.new_zeros(images_NCHW.shape[1])
    return layer_statistics(images_NCHW, zeros, zeros + 1.0)


class _Moments(torch.autograd.Function):
    """Two sums over the pixels.

    ``torch.var_mean`` takes 50 times as long over the pixels of channels-last bfloat16 features,
    and autograd would run six passes backwards where one is enough:

        d/dx = (g_shift + 2 · (x − μ) · g_square) / (H · W)
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, mean_C: Tensor) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(features.dtype, torch.float32)
        centre = mean_C.to(wide).view(1, -1, 1, 1)
        ctx.save_for_backward(features, centre)
        sums, squares = [], []
        for part in torch.split(features, _images_at_once(features)):
            # Subtracting from bfloat16 with broadcasting is slow: widen first.
            offset = part.to(wide, copy=True).sub_(centre)
            sums.append(offset.sum((2, 3)))
            squares.append(offset.square_().sum((2, 3)))
        pixels = features.shape[2] * features.shape[3]
        return torch.cat(sums) / pixels, torch.cat(squares) / pixels

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        features, centre = ctx.saved_tensors
        pixels = features.shape[2] * features.shape[3]
        to_shift, to_square = (g[:, :, None, None] / pixels for g in gradients)
        slope = 2.0 * to_square
        constant = to_shift - slope * centre
        gradient = torch.empty_like(features)
        # Compilers choose themselves where values lie in between.
        at_once = features.dtype == slope.dtype and not torch.compiler.is_compiling()
        step = _images_at_once(features)
        parts = (torch.split(x, step) for x in (features, slope, constant, gradient))
        for part, slope_part, constant_part, gradient_part in zip(*parts, strict=True):
            # Not addcmul: with 16 channels it takes ten times as long on a CPU.
            if at_once:
                torch.mul(part, slope_part, out=gradient_part).add_(constant_part)
                continue
            wide = part.to(slope.dtype, copy=True).mul_(slope_part).add_(constant_part)
            gradient_part.copy_(wide)
        return gradient, None


def _images_at_once(features: Tensor) -> int:
    """How many images' float32 copies stay in a CPU's second-level cache; elsewhere all."""
    if features.device.type != "cpu" or torch.compiler.is_compiling():
        return len(features)
    return max(1, _CACHED * len(features) // features.numel())


def _moments(features: Tensor, mean_C: Tensor) -> tuple[Tensor, Tensor]:
    shift, square = _Moments.apply(features, mean_C)  # type: ignore[no-untyped-call]
    return shift, square
