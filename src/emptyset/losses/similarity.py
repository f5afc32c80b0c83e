"""How alike images are in the features of a network."""

import torch
from torch import Tensor, nn

# Of classes that two images share, so little is none.
_SHARED = 1e-6


def similarity_to_others(features_NF: Tensor) -> Tensor:
    """Cosine of each image's features with the mean of all others'.

        loss = (1/N) Σ_n cos(f_n, stopgrad(mean_{k≠n} f_k))

    Args:
        features_NF: ``(N, F)``, N at least 2.

    Returns:
        Scalar, −1..1; 1 where all features point the same way.

    Gradient:
        Moves every image from the others, not the others from it.

    Source:
        SimLoss1 of Zhao et al., "Enhancing Diversity for Data-free Quantization", CVPR 2025,
        reconstructed from its supplement.
    """
    with torch.no_grad():
        others = (features_NF.sum(dim=0, keepdim=True) - features_NF) / (len(features_NF) - 1)
    return nn.functional.cosine_similarity(features_NF, others, dim=1).mean()


def similarity_within_classes(features_NF: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Mean cosine over the pairs of different images, by how much of a class they share.

        Σ_{i≠j} (y_i · y_j) cos(f_i, f_j) / Σ_{i≠j} (y_i · y_j)

    Args:
        features_NF: ``(N, F)``; features of zeros count with cosine 0.
        targets: y, ``(N,)`` classes or ``(N, C)`` probabilities.
        classes: C.

    Returns:
        Scalar, −1..1; 0 where no two images share a class.

    Source:
        Ours.
    """
    if targets.dim() == 1:
        targets = nn.functional.one_hot(targets, classes)
    labels = targets.to(features_NF.dtype)
    units = nn.functional.normalize(features_NF, dim=1)
    shared = (labels @ labels.T).fill_diagonal_(0.0)
    return (shared * (units @ units.T)).sum() / shared.sum().clamp(min=_SHARED)


def pairwise_similarity(features_NF: Tensor) -> Tensor:
    """Mean cosine over all pairs of different images, in one pass.

        mean_{i<j} cos(f_i, f_j) = (‖Σ_n u_n‖² − Σ_n ‖u_n‖²) / (N (N − 1)),   u = f / ‖f‖

    Args:
        features_NF: ``(N, F)``, N at least 2; features of zeros count with cosine 0.

    Returns:
        Scalar, −1..1.
    """
    units = nn.functional.normalize(features_NF, dim=1)
    pairs = units.sum(dim=0).square().sum() - units.square().sum()
    return pairs / (len(units) * (len(units) - 1))
