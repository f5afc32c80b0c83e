"""DSG's sample correlation inhibition: images of a batch that are not alike the way noise is.

The smaller, the nearer the eigenvalues of the images' similarities are to those of Gaussian noise,
and the more their eigenvectors turn away from the noise's: a batch that is the noise itself is the
worst, and equal images cost hardly more than noise drawn anew. So it does not keep images apart.
"""

from typing import Any

import torch
from torch import Tensor

# Gaps of eigenvalues much smaller than this are taken for 0 in the gradient of eigenvectors.
_GAP = 1e-3


def spectrum(images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of the cosines between all pairs of images.

    Args:
        images_NCHW: ``(N, C, H, W)``.

    Returns:
        ``(N,)``, which sum to N, and ``(N, N)`` with the eigenvectors as columns.

    Gradient:
        Exact for eigenvalues. For eigenvectors 1/gap of two eigenvalues is replaced by
        gap / (gap² + 1e-6), which stays finite where they coincide.
    """
    rows = torch.nn.functional.normalize(images_NCHW.flatten(1), dim=1)
    values, vectors = _Eigen.apply(rows @ rows.T)  # type: ignore[no-untyped-call]
    return values, vectors


def sample_correlation(
    images_NCHW: Tensor,
    reference_values_N: Tensor,
    reference_vectors_NN: Tensor,
    *,
    value_weight: float = 1e-4,
) -> Tensor:
    """Gap of a batch's eigenvalues to those of Gaussian images, and overlap of the eigenvectors.

        loss = value_weight · mean_i (λ_i − λ'_i)² + Σ_i w_i · |⟨u_i, u'_i⟩|
        w_i = (λ'_i − min λ') / (max λ' − min λ'),   ' of the Gaussian images

    Args:
        images_NCHW: ``(N, C, H, W)``.
        reference_values_N: λ', from ``spectrum`` of as many Gaussian images.
        reference_vectors_NN: u', from the same.
        value_weight: Of the eigenvalues.

    Returns:
        Scalar.

    Source:
        DSG, extended version, Qin et al., TPAMI 2023, sample correlation inhibition; weight of its
        released code.
    Differs from source:
        The code wraps the eigenvalues in a new variable, so that no gradient reaches the images;
        here it does. The code adds products ⟨u_i, u'_i⟩ as they come and takes the absolute value
        of the sum, though the sign of an eigenvector is arbitrary; here each product's is taken.
    """
    values, vectors = spectrum(images_NCHW)
    low, high = reference_values_N.min(), reference_values_N.max()
    weights = (reference_values_N - low) / (high - low).clamp(min=1e-12)
    products = (vectors * reference_vectors_NN).sum(dim=0).abs()
    gap = (values - reference_values_N).square().mean()
    return value_weight * gap + (weights * products).sum()


class _Eigen(torch.autograd.Function):
    """Eigendecomposition of a symmetric matrix with a gradient that stays finite."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(matrix)
        ctx.save_for_backward(values, vectors)
        return values, vectors

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        to_values, to_vectors = gradients
        values, vectors = ctx.saved_tensors
        gaps = values[None, :] - values[:, None]
        inverse = gaps / (gaps.square() + _GAP**2)
        inner = inverse * (vectors.T @ to_vectors) + torch.diag(to_values)
        gradient: Tensor = vectors @ inner @ vectors.T
        return (gradient + gradient.T) / 2
