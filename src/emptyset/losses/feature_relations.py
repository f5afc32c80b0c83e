"""How the places and the channels of a feature map relate to each other: ZAQ's comparison."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import l1_loss, scaled_dot_product_attention

_SMALLEST = 1e-12


def feature_relation_loss(
    student_features: Sequence[Tensor], teacher_features: Sequence[Tensor], *, strength: float = 0.1
) -> Tensor:
    """Distance of two networks' feature maps, each enhanced by what its places have in common.

        X: a map ``(C, HW)`` of one image, every place scaled to length 1
        S(X) = X + strength · X softmax(Xᵀ X)ᵀ                              places
        R(X) = X + strength · softmax(max(X Xᵀ) − X Xᵀ) X,  max by row      channels
        loss = Σ_maps mean|S(X_s) − S(X_t)| + mean|R(X_s) − R(X_t)|

    Memory stays linear in the number of places: the first is attention, which torch computes
    without holding its ``(HW, HW)`` weights.

    Args:
        student_features: Maps ``(N, C, H, W)``, C and H, W the same in both networks.
        teacher_features: As many, of the same shapes.
        strength: 0.1 in the source.

    Returns:
        Scalar [1]; 0 exactly when all maps agree up to the length of each place.

    Gradient:
        A place whose features are all 0 gets none.

    Source:
        ZAQ, Liu et al. 2021, arXiv:2103.15263, channel relation map and released code (spatial and
        channel-wise relation).
    """
    losses = []
    for student, teacher in zip(student_features, teacher_features, strict=True):
        ours, theirs = (_directions(x.flatten(2)) for x in (student, teacher))
        losses.append(l1_loss(_places(ours, strength), _places(theirs, strength)))
        losses.append(l1_loss(_channels(ours, strength), _channels(theirs, strength)))
    return torch.stack(losses).sum()


def _directions(x_NCP: Tensor) -> Tensor:
    """Every place scaled to length 1; a place of zeros stays, and gets no gradient.

    (torch's ``normalize`` would hand it a gradient of 1e12: after quantization many places are 0.)
    """
    length = torch.linalg.vector_norm(x_NCP, dim=1, keepdim=True)
    there = length > _SMALLEST
    return torch.where(there, x_NCP / torch.where(there, length, 1.0), 0.0)


def _places(x_NCP: Tensor, strength: float) -> Tensor:
    # One head whose queries, keys and values are the places.
    places = x_NCP.transpose(1, 2).unsqueeze(1)
    related = scaled_dot_product_attention(places, places, places, scale=1.0)
    return x_NCP + strength * related.squeeze(1).transpose(1, 2)


def _channels(x_NCP: Tensor, strength: float) -> Tensor:
    energy = x_NCP @ x_NCP.transpose(1, 2)
    # softmax(row maximum − energy) = softmax(−energy).
    return x_NCP + strength * (-energy).softmax(dim=2) @ x_NCP
