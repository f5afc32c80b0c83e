"""IntraQ's losses: images of one class that differ in confidence and in features."""

from torch import Tensor, nn


def soft_inception_loss(logits_NK: Tensor, labels_N: Tensor, targets_N: Tensor) -> Tensor:
    """Mean squared distance between the probability of the label and a target of its own.

        loss = (1/N) Σ_n (p_n,y_n − t_n)²,   p = softmax(logits)

    Args:
        logits_NK: ``(N, K)``.
        labels_N: y, ``(N,)`` class indices.
        targets_N: t, ``(N,)`` probabilities.

    Returns:
        Scalar [probability squared].

    Source:
        IntraQ, Zhong et al. 2022, arXiv:2111.09136, eq. 8 (soft inception loss).
    """
    chosen = logits_NK.softmax(dim=1).gather(1, labels_N[:, None])[:, 0]
    return (chosen - targets_N).square().mean()


def marginal_distance_loss(
    features_NF: Tensor,
    labels_N: Tensor,
    centres_KF: Tensor,
    known_K: Tensor,
    *,
    lower: float,
    upper: float,
) -> Tensor:
    """Keeps images neither too near to nor too far from the centre of their class.

        loss = mean_n max(λ_l − d_n, 0) + max(d_n − λ_u, 0),   d_n = 1 − cos(f_n, c_y_n)

    The mean is over the images whose class has a centre; without any the loss is 0.

    Args:
        features_NF: f, ``(N, F)``.
        labels_N: y, ``(N,)`` class indices.
        centres_KF: c, ``(K, F)``.
        known_K: 1 where a class has a centre, else 0.
        lower: λ_l, least cosine distance.
        upper: λ_u, greatest cosine distance.

    Returns:
        Scalar [cosine distance, 0..2].

    Source:
        IntraQ, Zhong et al. 2022, arXiv:2111.09136, eq. 7 (marginal distance constraint); the
        cosine *distance* as in its released code.
    """
    distance = 1 - nn.functional.cosine_similarity(features_NF, centres_KF[labels_N], dim=1)
    excess = (lower - distance).clamp(min=0.0) + (distance - upper).clamp(min=0.0)
    counted = known_K[labels_N].to(excess.dtype)
    return (excess * counted).sum() / counted.sum().clamp(min=1.0)


def class_centres(features_MF: Tensor, labels_M: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mean feature of each class.

    Args:
        features_MF: ``(M, F)``, M may be 0.
        labels_M: ``(M,)`` class indices.
        classes: K.

    Returns:
        ``(K, F)`` means, 0 for a class without images, and ``(K,)`` 1 or 0: has it any.
    """
    # A product, not index_add, whose order of addition varies on CUDA.
    members = nn.functional.one_hot(labels_M, classes).to(features_MF.dtype)
    sums, counts = members.T @ features_MF, members.sum(dim=0)
    return sums / counts.clamp(min=1.0)[:, None], (counts > 0).to(features_MF.dtype)
