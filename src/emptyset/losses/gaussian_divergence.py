"""Knowledge Within's distance of BatchNorm statistics: a divergence of Gaussians."""

from collections.abc import Sequence

import torch
from torch import Tensor

from emptyset.losses.layer_statistics import LayerStatistics


def gaussian_divergence(
    layers: Sequence[LayerStatistics], *, least_variance: float = 1e-5
) -> Tensor:
    """KL divergence of the stored Gaussian of each channel from the one that the batch causes.

        loss = (1/L) Σ_layers Σ_c KL(N(μ_c, σ²_c) ‖ N(m_c, v_c))
        KL = log(s/σ) − ½ (1 − (σ² + (μ − m)²) / s²),   s² = v biased

    Args:
        layers: Statistics of each layer.
        least_variance: Both variances are at least this [feature units squared]: a channel that
            is always 0 would divide by 0. The default is that of BatchNorm itself.

    Returns:
        Scalar [nat]; 0 exactly when the batch agrees with all layers.

    Source:
        Knowledge Within, Haroush et al. 2020, arXiv:1912.01274, section 3.3.
    Differs from source:
        The mean over layers and the lower limit are ours; the source could not be read, and no
        code was released.
    """
    losses = []
    for layer in layers:
        stored = layer.stored_var.clamp(min=least_variance)
        found = layer.batch_variance(correction=0).clamp(min=least_variance)
        ratio = (stored + layer.batch_shift().square()) / found
        losses.append((0.5 * (found / stored).log() - 0.5 * (1 - ratio)).sum())
    return torch.stack(losses).mean()
