"""Size of images: an image prior that keeps pixels near the mean of the data."""

from torch import Tensor


def pixel_norm_per_image(images_NCHW: Tensor) -> Tensor:
    """Euclidean norm of each image.

        loss_n = ‖x_n‖₂

    Args:
        images_NCHW: ``(N, C, H, W)`` [standardised pixel units].

    Returns:
        ``(N,)`` [units of the images]; 0 exactly where an image is the mean of the data.

    Gradient:
        0 where the norm is 0 (torch's convention for the norm of a zero tensor).

    Source:
        DeepInversion, Yin et al. 2020, arXiv:1912.08795, R_l2 of eq. 3; per image as in its
        released ImageNet code, which takes the mean over the images.
    """
    norms: Tensor = images_NCHW.flatten(1).norm(dim=1)
    return norms
