"""DSG's slack distribution alignment: statistics may differ, within limits, layer by layer."""

from collections.abc import Sequence

import torch
from torch import Tensor

from emptyset.losses.layer_statistics import LayerStatistics

# Under the root: keeps the gradient finite for flat channels.
_EPSILON = 1e-6


def slack_of(layers: Sequence[LayerStatistics], quantile: float) -> Tensor:
    """How far Gaussian noise is from the stored statistics: the slack of every layer.

        δ_l = quantile over channels of |m_l − μ_l|,  γ_l = the same of |s_l − σ_l|

    Args:
        layers: Statistics that a batch of Gaussian images causes.
        quantile: ε, 0..1.

    Returns:
        ``(L, 2)``: δ and γ of each layer [feature units].

    Source:
        DSG, Zhang et al. 2021, arXiv:2103.01049, section 3.2.
    """
    found = []
    for layer in layers:
        mean_gap = layer.batch_shift().abs()
        spread = layer.batch_variance(correction=0).sqrt()
        spread_gap = (spread - layer.stored_var.sqrt()).abs()
        found.append(torch.stack([mean_gap.quantile(quantile), spread_gap.quantile(quantile)]))
    return torch.stack(found)


def slack_alignment(
    layers: Sequence[LayerStatistics], slack_L2: Tensor, *, per_image: bool
) -> Tensor:
    """Squared gaps of mean and standard deviation beyond the slack.

        L_l = ‖max(|m_l − μ_l| − δ_l, 0)‖² + ‖max(|s_l − σ_l| − γ_l, 0)‖²

    Args:
        layers: Statistics of each layer.
        slack_L2: From ``slack_of``.
        per_image: Statistics of every image on its own, else of the batch.

    Returns:
        ``(N, L)`` or ``(1, L)`` [feature units squared]; 0 where the gaps are within the slack,
        and per image where a layer sees one pixel only, which has no spread.

    Source:
        DSG, Zhang et al. 2021, arXiv:2103.01049, eq. 5 to 7.
    """
    losses = []
    for layer, (mean_slack, spread_slack) in zip(layers, slack_L2.unbind(), strict=True):
        if per_image and layer.pixels == 1:
            losses.append(torch.zeros_like(layer.shift[:, 0]))
            continue
        if per_image:
            shift, variance = layer.shift, layer.image_variance()
        else:
            shift, variance = layer.batch_shift()[None], layer.batch_variance(correction=0)[None]
        spread = (variance + _EPSILON).sqrt()
        spread_gap = (spread - (layer.stored_var + _EPSILON).sqrt()).abs()
        beyond_mean = (shift.abs() - mean_slack).clamp(min=0.0)
        beyond_spread = (spread_gap - spread_slack).clamp(min=0.0)
        losses.append(beyond_mean.square().sum(1) + beyond_spread.square().sum(1))
    return torch.stack(losses, dim=1)


def layer_enhancement(
    images: int, layers: int, *, factor: float = 2.0, period: int | None = None
) -> Tensor:
    """Weights by which image i cares more for layer ``i mod period`` than for the others.

    With as many images as layers the mean over images is DSG's (1/N) 1ᵀ (I + 1 1ᵀ) L.

    Args:
        images: N.
        layers: L.
        factor: Weight of the image's own layer; the others have 1.
        period: None: L.

    Returns:
        ``(N, L)``.

    Source:
        DSG, Zhang et al. 2021, arXiv:2103.01049, eq. 9, for any batch size.
    """
    own = torch.arange(images)[:, None] % (period or layers) == torch.arange(layers)[None]
    return 1.0 + (factor - 1.0) * own.float()
