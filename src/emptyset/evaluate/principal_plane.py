"""The plane in which features differ most: principal component analysis to two dimensions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from emptyset.errors import ImagesError


@dataclass(frozen=True)
class PrincipalPlane:
    """A basis that any features can be shown in.

    Attributes:
        mean: ``(F,)`` of the features that it was fitted to, double.
        scale: ``(F,)`` their standard deviation; 1 where a feature never changes.
        axes: ``(F, 2)`` orthonormal; the first explains most.
        explained: Share of the variance of the standardised features along each axis, 0..1.
    """

    mean: Tensor
    scale: Tensor
    axes: Tensor
    explained: tuple[float, float]

    def project(self, features_NF: Tensor) -> Tensor:
        """``(N, 2)`` double [standard deviations]."""
        return (features_NF.double() - self.mean) / self.scale @ self.axes


def principal_plane(features_NF: Tensor) -> PrincipalPlane:
    """Fit the plane: standardise, then the two leading eigenvectors of the covariance.

    The sign of an axis is free; here its largest entry is positive, so that the same features give
    the same picture.

    Args:
        features_NF: ``(N, F)``.

    Raises:
        ImagesError: If there are fewer than 3 images or 2 features, if nothing differs, or if a
            feature is not finite.

    Source:
        The pictures of Qimera, Choi et al. 2021, arXiv:2111.02625, section 5.2 and figure 3;
        standardisation as in the released code.
    """
    count, width = features_NF.shape
    if count < 3 or width < 2:
        raise ImagesError(
            f"A plane needs at least 3 images with 2 features. Got {count} with {width}."
        )
    if not bool(torch.isfinite(features_NF).all()):
        raise ImagesError("A plane needs finite features; those of some images are not.")
    features = features_NF.double()
    mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0)
    scale = torch.where(deviation > 0, deviation, 1.0)
    standard = (features - mean) / scale
    values, vectors = torch.linalg.eigh(standard.T @ standard / count)
    total = values.sum()
    if not bool(total > 0):
        raise ImagesError("A plane needs images that differ; the features of these are all equal.")
    axes = vectors[:, [-1, -2]]
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    first, second = (values[[-1, -2]] / total).clamp(min=0).tolist()
    return PrincipalPlane(mean, scale, axes * largest.sign(), (first, second))
