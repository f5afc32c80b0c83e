"""Smoothness of images: the differences between neighbouring pixels."""

import torch
from torch import Tensor

from emptyset.errors import ImagesError


def total_variation(images_NCHW: Tensor) -> Tensor:
    """Four Frobenius norms of neighbour differences, over the whole batch.

        loss = ‖→‖ + ‖↓‖ + ‖↘‖ + ‖↗‖,   ‖d‖ = sqrt(Σ over all images and pixels of d²)

    Args:
        images_NCHW: ``(N, C, H, W)`` [pixel units of any scale], H and W at least 2.

    Returns:
        Scalar [units of the images]; 0 exactly when every image is flat.

    Raises:
        ImagesError: If an image is narrower than 2 pixels.

    Gradient:
        0 where a norm is 0 (torch's convention for the norm of a zero tensor).

    Source:
        DeepInversion, Yin et al. 2020, arXiv:1912.08795, eq. 3; the four directions are those of
        its released code.
    Differs from source:
        Nothing known.
    """
    return torch.stack([d.norm() for d in _differences(images_NCHW)]).sum()


def total_variation_per_image(images_NCHW: Tensor) -> Tensor:
    """The same norms for each image on its own, so that images do not influence one another.

        loss_n = ‖→_n‖ + ‖↓_n‖ + ‖↘_n‖ + ‖↗_n‖

    Args:
        images_NCHW: ``(N, C, H, W)`` [pixel units of any scale], H and W at least 2.

    Returns:
        ``(N,)`` [units of the images]; 0 exactly where an image is flat.

    Raises:
        ImagesError: If an image is narrower than 2 pixels.

    Source:
        Ours, after ``total_variation``; DFFG (Leng et al., BMVC 2023) needs terms per image.
    """
    norms = [d.flatten(1).norm(dim=1) for d in _differences(images_NCHW)]
    return torch.stack(norms).sum(dim=0)


def _differences(images: Tensor) -> list[Tensor]:
    if images.dim() != 4 or min(images.shape[2:]) < 2:
        raise ImagesError(
            "Total variation needs images (N, C, H, W) of at least 2 × 2 pixels. Got shape "
            f"{tuple(images.shape)}."
        )
    return [
        images[:, :, :, 1:] - images[:, :, :, :-1],
        images[:, :, 1:, :] - images[:, :, :-1, :],
        images[:, :, 1:, 1:] - images[:, :, :-1, :-1],
        images[:, :, :-1, 1:] - images[:, :, 1:, :-1],
    ]
