"""Distance from class centres: the BatchNorm statistics of one good image per class.

A reconstruction of how TexQ's generator is led by its calibration centres; the paper's formula
could not be seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emptyset.losses.layer_statistics import LayerStatistics


@dataclass(frozen=True)
class ClassCentres:
    """What the centre of each class causes in every BatchNorm input, in the order of the calls.

    Attributes:
        shifts: Per layer ``(K, C)`` mean over the pixels less the stored mean [feature units].
        variances: Per layer ``(K, C)`` biased variance over the pixels [units squared].
    """

    shifts: tuple[Tensor, ...]
    variances: tuple[Tensor, ...]

    @staticmethod
    def of(layers: Sequence[LayerStatistics]) -> "ClassCentres":
        """The centres, of the statistics of one image per class."""
        shifts = tuple(layer.shift for layer in layers)
        return ClassCentres(shifts, tuple(_image_variance(layer) for layer in layers))


def distance_from_own_centre(
    layers: Sequence[LayerStatistics], targets_N: Tensor, centres: ClassCentres
) -> Tensor:
    """Every image should cause what the centre of its class causes, in the deeper layers.

        loss = mean over the deeper half of the layers of
               mean_nc (m_nc − m*_yc)² + mean_nc (v_nc − v*_yc)²,   y = class of image n

    Args:
        layers: Statistics of each layer for N images.
        targets_N: y, ``(N,)`` class indices.
        centres: m* and v* of the same layers.

    Returns:
        Scalar; 0 exactly when every image agrees with its centre.
    """
    losses = []
    for number in deeper_half(len(layers)):
        layer = layers[number]
        shift_gap = layer.shift - centres.shifts[number][targets_N]
        variance_gap = _image_variance(layer) - centres.variances[number][targets_N]
        losses.append(shift_gap.square().mean() + variance_gap.square().mean())
    return torch.stack(losses).mean()


def distance_from_all_centres(layers: Sequence[LayerStatistics], centres: ClassCentres) -> Tensor:
    """The batch should cause what all centres together cause, in the deeper layers.

        loss = 1 / (L N) · sum over the deeper half of the L layers of
               mean_c (m_c − m*_c)² + mean_c (v_c − v*_c)²
        m* = mean of the centres' means,  v* = mean of their variances + variance of their means

    Args:
        layers: Statistics of each layer; their N images count together.
        centres: Of the same layers.

    Returns:
        Scalar; 0 exactly when the batch agrees with the centres.

    Source:
        SynQ, Kim et al., ICLR 2025, released re-implementation of TexQ.
    """
    losses = []
    for number in deeper_half(len(layers)):
        layer, shifts = layers[number], centres.shifts[number]
        variance = centres.variances[number].mean(dim=0) + shifts.var(dim=0, correction=0)
        shift_gap = layer.batch_shift() - shifts.mean(dim=0)
        variance_gap = layer.batch_variance(correction=0) - variance
        losses.append(shift_gap.square().mean() + variance_gap.square().mean())
    images = len(layers[0].shift)
    return torch.stack(losses).sum() / (len(layers) * images)


def deeper_half(layers: int) -> range:
    """Numbers of the deeper half of so many layers; of an odd number the middle one is deep."""
    return range(layers // 2, layers)


def _image_variance(layer: LayerStatistics) -> Tensor:
    """Biased variance over the pixels of each image, ``(N, C)``."""
    return (layer.square - layer.shift.square()).clamp(min=0.0)
