"""ZAQ's feature relations against loops over plain arrays."""

import numpy as np
import pytest
import torch
from torch import Tensor

from emptyset.losses.feature_relations import feature_relation_loss


def maps(*shape: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random, dtype=torch.double)


def softmax(row: np.ndarray) -> np.ndarray:
    lifted = np.exp(row - row.max())
    return lifted / lifted.sum()


def enhanced(image: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Both forms of one map ``(C, H, W)``, place by place and channel by channel."""
    places = image.reshape(image.shape[0], -1).copy()
    for place in range(places.shape[1]):
        places[:, place] /= np.linalg.norm(places[:, place])
    spatial, channelwise = places.copy(), places.copy()
    for i in range(places.shape[1]):
        likeness = np.array([places[:, i] @ places[:, j] for j in range(places.shape[1])])
        share = softmax(likeness)
        for j in range(places.shape[1]):
            spatial[:, i] += strength * share[j] * places[:, j]
    for c in range(places.shape[0]):
        energy = np.array([places[c] @ places[d] for d in range(places.shape[0])])
        share = softmax(energy.max() - energy)
        for d in range(places.shape[0]):
            channelwise[c] += strength * share[d] * places[d]
    return spatial, channelwise


@pytest.mark.parametrize("strength", [0.1, 0.7])
def test_it_is_the_sum_over_maps_of_two_mean_distances(strength: float) -> None:
    ours = [maps(2, 3, 4, 5), maps(2, 6, 2, 3, seed=1)]
    theirs = [maps(2, 3, 4, 5, seed=2), maps(2, 6, 2, 3, seed=3)]
    expected = 0.0
    for one, other in zip(ours, theirs, strict=True):
        gaps: list[list[float]] = [[], []]
        for image in range(2):
            a = enhanced(one[image].numpy(), strength)
            b = enhanced(other[image].numpy(), strength)
            for form in (0, 1):
                gaps[form].append(float(np.abs(a[form] - b[form]).mean()))
        expected += float(np.mean(gaps[0])) + float(np.mean(gaps[1]))
    actual = feature_relation_loss(ours, theirs, strength=strength)
    assert actual.item() == pytest.approx(expected, rel=1e-9)


def test_the_length_of_a_place_does_not_matter() -> None:
    one = maps(2, 3, 4, 5)
    scaled = one * (0.5 + torch.rand(2, 1, 4, 5, dtype=torch.double, generator=torch.Generator()))
    assert feature_relation_loss([one], [scaled]).item() == pytest.approx(0.0, abs=1e-12)


def test_places_of_zeros_get_no_gradient_and_do_no_harm() -> None:
    ours = maps(2, 3, 4, 5).clamp(min=0)
    ours[0, :, 1, 2] = 0.0
    ours.requires_grad_()
    (gradient,) = torch.autograd.grad(feature_relation_loss([ours], [maps(2, 3, 4, 5)]), [ours])
    assert bool(torch.isfinite(gradient).all())
    assert gradient[0, :, 1, 2].eq(0).all()
    assert gradient.abs().max() < 1.0


def test_its_gradient_is_that_of_finite_differences() -> None:
    theirs = [maps(1, 2, 2, 3, seed=4)]
    ours = maps(1, 2, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: feature_relation_loss([x], theirs), [ours])
