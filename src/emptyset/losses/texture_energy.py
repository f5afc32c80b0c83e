"""Texture energies of images by Laws' filters, and TexQ's loss on how they are spread.

A reconstruction: TexQ's paper and code could not be seen. What is known of it: energies of Laws'
filters; real images have up to nine dominant ones, plainly made images a single one; θ_U = 0.3,
ε = 0.015, k = 9. How these meet in a loss is ours. θ_L = 0.5 is told too, but not
what for, so it is not used.
"""

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

# Laws' one-dimensional filters of five pixels: level, edge, spot, wave, ripple.
_FILTERS = (
    (1.0, 4.0, 6.0, 4.0, 1.0),
    (-1.0, -2.0, 0.0, 2.0, 1.0),
    (-1.0, 0.0, 2.0, 0.0, -1.0),
    (-1.0, 2.0, 0.0, -2.0, 1.0),
    (1.0, -4.0, 6.0, -4.0, 1.0),
)
# Pairs of a filter along the rows and one along the columns; level with level is left out: it
# sees brightness, not texture.
_PAIRS = tuple((a, b) for a in range(5) for b in range(a, 5) if b)
ENERGIES = len(_PAIRS)
# Brightness of red, green and blue (ITU-R BT.601).
_LUMA = (0.299, 0.587, 0.114)
_SMALLEST_SUM = 1e-12


def texture_energies(images_NCHW: Tensor) -> Tensor:
    """Share of each of 14 texture energies of every image.

        E_ab = mean over the pixels of |x ∗ (f_a ⊗ f_b)|,  averaged with E_ba;   e = E / Σ E

    Args:
        images_NCHW: ``(N, C, H, W)``, grey or colour, any units.

    Returns:
        ``(N, 14)``, each row sums to 1 (all 0 for an image of one value).

    Source:
        Laws 1980, "Textured image segmentation"; pairs as TexQ is reported to use them.
    """
    filters = images_NCHW.new_tensor(_FILTERS)
    kernels = torch.einsum("ai,bj->abij", filters, filters).reshape(25, 1, 5, 5)
    grey = pad(_brightness(images_NCHW), (2, 2, 2, 2), mode="replicate")
    energies = conv2d(grey, kernels).abs().mean((2, 3)).reshape(-1, 5, 5)
    both = (energies + energies.transpose(1, 2)) / 2
    chosen = torch.stack([both[:, a, b] for a, b in _PAIRS], dim=1)
    return chosen / chosen.sum(dim=1, keepdim=True).clamp(min=_SMALLEST_SUM)


def texture_energy_loss(
    images_NCHW: Tensor, *, highest: float, lowest: float, dominant: int
) -> Tensor:
    """No texture may stand out, and several must be there.

        loss = mean_n max(max_i e_ni − θ_U, 0) + Σ_{i among the k largest} max(ε − e_ni, 0)

    Args:
        images_NCHW: ``(N, C, H, W)``, grey or colour, any units.
        highest: θ_U, most that one energy may have, 0..1.
        lowest: ε, least that each of the dominant ones must have, 0..1.
        dominant: k, 1 to 14.

    Returns:
        Scalar; 0 exactly when every image has k energies from ε up and none above θ_U.

    Source:
        TexQ, Chen et al., NeurIPS 2023: constants as reported; the loss is a reconstruction.
    """
    largest = texture_energies(images_NCHW).topk(dominant, dim=1).values
    excess = (largest[:, 0] - highest).clamp(min=0.0)
    return (excess + (lowest - largest).clamp(min=0.0).sum(dim=1)).mean()


def _brightness(images_NCHW: Tensor) -> Tensor:
    """``(N, 1, H, W)``."""
    if images_NCHW.shape[1] != 3:
        return images_NCHW.mean(dim=1, keepdim=True)
    weights = images_NCHW.new_tensor(_LUMA).view(1, 3, 1, 1)
    return (images_NCHW * weights).sum(dim=1, keepdim=True)
