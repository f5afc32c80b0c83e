"""Distance between the statistics that images cause and those that BatchNorm layers stored.

The published variants differ in what they average and in what they square; the effective weight
differs by factors of 10 to 1000, so a coefficient belongs to its own form. Letters: m, v, s are
mean, variance and standard deviation that the images cause; μ, σ² what the layer stored.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from emptyset.errors import UnsupportedModelError
from emptyset.losses.layer_statistics import LayerStatistics

# Under the roots of ZeroQ's and Genie's code: keeps their gradients finite for flat channels.
_EPSILON = 1e-6


def zeroq_statistics(layers: Sequence[LayerStatistics]) -> Tensor:
    """ZeroQ's form: every image alone should cause the stored statistics.

        loss = Σ_layers (1/N) Σ_n Σ_c (m_nc − μ_c)² + (s_nc − σ_c)²
        s = sqrt(unbiased variance over H, W + 1e-6),  σ = sqrt(stored variance + 1e-6)

    Layers that see one pixel per image are left out: a single value has no spread.

    Args:
        layers: Statistics of each layer. For the term on the images themselves add
            ``input_statistics(images)``, as ZeroQ does.

    Returns:
        Scalar [feature units squared]; 0 exactly when all images agree with all layers.

    Raises:
        UnsupportedModelError: If no layer is left.

    Source:
        ZeroQ, Cai et al. 2020, arXiv:2001.00281, eq. 5; form and epsilon of its released code.
    Differs from source:
        Statistics are those of BatchNorm inputs; the code pairs convolutions with BatchNorms by
        their order, which breaks where a convolution has none.
    """
    losses = []
    for layer in layers:
        if layer.pixels == 1:
            continue
        spread = (layer.image_variance() + _EPSILON).sqrt()
        stored = (layer.stored_var + _EPSILON).sqrt()
        gap = layer.shift.square() + (spread - stored).square()
        losses.append(gap.sum() / len(gap))
    if not losses:
        raise UnsupportedModelError(
            "No BatchNorm layer of the teacher sees more than one pixel, so a single image has no "
            "spread to match. Set 'statistics' to 'batch'."
        )
    return torch.stack(losses).sum()


def batch_statistics(layers: Sequence[LayerStatistics]) -> Tensor:
    """ZeroQ's form, with the statistics of the whole batch instead of every image's.

        loss = Σ_layers Σ_c (m_c − μ_c)² + (s_c − σ_c)²,   s = sqrt(biased batch variance + 1e-6)

    Args:
        layers: Statistics of each layer.

    Returns:
        Scalar [feature units squared]; 0 exactly when the batch agrees with all layers.

    Source:
        Ours, after ``zeroq_statistics``: what ZeroQ's paper prints, which leaves the batch open.
    """
    losses = []
    for layer in layers:
        spread = (layer.batch_variance(correction=0) + _EPSILON).sqrt()
        stored = (layer.stored_var + _EPSILON).sqrt()
        losses.append(layer.batch_shift().square().sum() + (spread - stored).square().sum())
    return torch.stack(losses).sum()


def gdfq_statistics(layers: Sequence[LayerStatistics]) -> Tensor:
    """GDFQ's form: mean squared gaps of batch mean and batch variance, averaged over layers.

        loss = (1/L) Σ_layers mean_c (m_c − μ_c)² + mean_c (v_c − σ²_c)²,   v biased

    Args:
        layers: Statistics of each layer.

    Returns:
        Scalar [units squared, and to the fourth]; 0 exactly when the batch agrees.

    Source:
        GDFQ, Xu et al. 2020, arXiv:2003.03603, eq. 3; form of the released code, which Qimera,
        AIT, AdaDFQ, IntraQ and HAST share.
    """
    return torch.stack([_mean_squared_gaps(layer) for layer in layers]).mean()


def layered_statistics(layers: Sequence[LayerStatistics], *, shallow: float, deep: float) -> Tensor:
    """GDFQ's form with a weight of its own for each half of the network.

        loss = (1/L) Σ_l w_l · [mean_c (m_c − μ_c)² + mean_c (v_c − σ²_c)²]

    Args:
        layers: Statistics of each layer, first layer first.
        shallow: w of the first half; below 1 it relaxes them.
        deep: w of the others (of an odd number the middle one is among them).

    Returns:
        Scalar; 0 exactly when the batch agrees.

    Source:
        TexQ, Chen et al., NeurIPS 2023, as re-implemented in the released code of SynQ (0.2 and
        1.1).
    """
    first = len(layers) // 2
    weights = [shallow] * first + [deep] * (len(layers) - first)
    gaps = [w * _mean_squared_gaps(layer) for w, layer in zip(weights, layers, strict=True)]
    return torch.stack(gaps).mean()


def _mean_squared_gaps(layer: LayerStatistics) -> Tensor:
    """Of batch mean and biased batch variance from what the layer stored."""
    return (
        layer.batch_shift().square().mean()
        + (layer.batch_variance(correction=0) - layer.stored_var).square().mean()
    )


def deep_inversion_statistics(
    layers: Sequence[LayerStatistics], *, first_multiplier: float = 1.0
) -> Tensor:
    """DeepInversion's form: norms, not squared, summed over layers.

        loss = Σ_l r_l (‖v_l − σ²_l‖₂ + ‖m_l − μ_l‖₂),   r_1 = first_multiplier, others 1

    Args:
        layers: Statistics of each layer, first layer first.
        first_multiplier: Weight of the first layer.

    Returns:
        Scalar [units, and units squared]; 0 exactly when the batch agrees.

    Source:
        DeepInversion, Yin et al. 2020, arXiv:1912.08795, eq. 4; r_1 as in its released code (10
        for ImageNet).
    """
    losses = [
        (layer.batch_variance(correction=0) - layer.stored_var).norm() + layer.batch_shift().norm()
        for layer in layers
    ]
    weights = [first_multiplier] + [1.0] * (len(losses) - 1)
    return torch.stack([w * loss for w, loss in zip(weights, losses, strict=True)]).sum()


def genie_statistics(layers: Sequence[LayerStatistics]) -> Tensor:
    """Genie's form: mean squared gaps of batch mean and standard deviation, summed over layers.

        loss = Σ_layers mean_c (m_c − μ_c)² + mean_c (s_c − σ_c)²
        s = sqrt(unbiased batch variance + 1e-6),  σ = sqrt(stored variance + 1e-6)

    Args:
        layers: Statistics of each layer. Genie's term on the images is
            ``zeroq_statistics([input_statistics(images)])``.

    Returns:
        Scalar [feature units squared]; 0 exactly when the batch agrees.

    Source:
        Genie, Jeon et al. 2023, arXiv:2212.04780; form and epsilon of its released code.
    """
    losses = []
    for layer in layers:
        spread = (layer.batch_variance(correction=1) + _EPSILON).sqrt()
        stored = (layer.stored_var + _EPSILON).sqrt()
        losses.append(layer.batch_shift().square().mean() + (spread - stored).square().mean())
    return torch.stack(losses).sum()
