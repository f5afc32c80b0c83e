"""DSG's losses against plain numbers, matrices and finite differences."""

import pytest
import torch

from emptyset.losses.layer_statistics import LayerStatistics, layer_statistics
from emptyset.losses.sample_correlation import sample_correlation, spectrum
from emptyset.losses.slack_alignment import layer_enhancement, slack_alignment, slack_of

EPSILON = 1e-6


def layers() -> tuple[list[torch.Tensor], list[LayerStatistics]]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 2, 4, 5), (3, 4, 2, 3)]
    features = [torch.randn(s, generator=generator, dtype=torch.double) for s in shapes]
    found = [
        layer_statistics(x, torch.full((x.shape[1],), 0.4).double(), torch.full((x.shape[1],), 2.0))
        for x in features
    ]
    return features, found


def test_the_slack_is_the_quantile_of_the_gaps_that_noise_has() -> None:
    features, found = layers()
    slack = slack_of(found, 0.9)
    for x, (mean_slack, spread_slack) in zip(features, slack.tolist(), strict=True):
        for value, gaps in (
            (mean_slack, (x.mean((0, 2, 3)) - 0.4).abs()),
            (spread_slack, (x.std((0, 2, 3), correction=0) - 2.0**0.5).abs()),
        ):
            ranked = sorted(gaps.tolist())
            place = 0.9 * (len(ranked) - 1)
            low = int(place)
            expected = ranked[low] + (place - low) * (ranked[low + 1] - ranked[low])
            assert value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("per_image", [True, False])
def test_only_what_exceeds_the_slack_counts(per_image: bool) -> None:
    features, found = layers()
    slack = torch.tensor([[0.2, 0.1], [0.05, 0.6]], dtype=torch.double)
    losses = slack_alignment(found, slack, per_image=per_image)
    assert losses.shape == ((3 if per_image else 1), 2)
    for index, x in enumerate(features):
        for row in range(len(losses)):
            part = x[row : row + 1] if per_image else x
            expected = 0.0
            for c in range(x.shape[1]):
                values = part[:, c].flatten()
                spread = (values.var(correction=1 if per_image else 0) + EPSILON) ** 0.5
                mean_gap = abs(values.mean().item() - 0.4) - slack[index, 0].item()
                spread_gap = abs(spread.item() - (2.0 + EPSILON) ** 0.5) - slack[index, 1].item()
                expected += max(mean_gap, 0.0) ** 2 + max(spread_gap, 0.0) ** 2
            assert losses[row, index].item() == pytest.approx(expected, rel=1e-6)


def test_the_mean_over_images_is_the_papers_matrix_form() -> None:
    count = 5
    losses = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    ones = torch.ones(count, dtype=torch.double)
    paper = ones @ (torch.eye(count).double() + torch.outer(ones, ones)) @ losses / count
    weights = layer_enhancement(count, count).double()
    assert (weights * losses).sum(1).mean().item() == pytest.approx(paper.item())


def test_images_beyond_the_last_layer_begin_again_and_the_legacy_counts_twenty() -> None:
    assert layer_enhancement(4, 3).argmax(1).tolist() == [0, 1, 2, 0]
    legacy = layer_enhancement(23, 3, factor=4.0, period=20)
    assert legacy.max(1).values.tolist() == [4.0] * 3 + [1.0] * 17 + [4.0] * 3


def test_the_spectrum_is_that_of_the_cosines() -> None:
    images = torch.randn(4, 2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    values, vectors = spectrum(images)
    rebuilt = vectors @ torch.diag(values) @ vectors.T
    for i in range(4):
        for j in range(4):
            a, b = images[i].flatten(), images[j].flatten()
            cosine = float(a @ b / (a.norm() * b.norm()))
            assert rebuilt[i, j].item() == pytest.approx(cosine, abs=1e-12)


def test_the_correlation_reaches_the_images_with_the_right_gradient() -> None:
    generator = torch.Generator().manual_seed(1)
    reference = spectrum(torch.randn(4, 1, 3, 4, generator=generator, dtype=torch.double))
    images = torch.randn(4, 1, 3, 4, generator=generator, dtype=torch.double)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return sample_correlation(x, *reference, value_weight=0.3)

    given = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(given), [given])
    assert gradient.abs().max().item() > 1e-3
    for index in range(0, 48, 7):
        step = torch.zeros(48, dtype=torch.double)
        step[index] = 1e-6
        step = step.view_as(images)
        slope = (loss(images + step) - loss(images - step)).item() / 2e-6
        # The gradient broadens gaps of eigenvalues by a thousandth.
        assert gradient.flatten()[index].item() == pytest.approx(slope, rel=1e-2, abs=1e-5)


def test_equal_images_have_a_finite_gradient() -> None:
    images = torch.ones(3, 1, 2, 2, requires_grad=True)
    reference = spectrum(torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0)))
    loss = sample_correlation(images, *reference)
    (gradient,) = torch.autograd.grad(loss, [images])
    assert bool(torch.isfinite(gradient).all())


def test_the_sign_of_an_eigenvector_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 1, 2, 5, generator=generator)
    values, vectors = spectrum(torch.randn(3, 1, 2, 5, generator=generator))
    turned = vectors * torch.tensor([1.0, -1.0, 1.0])
    torch.testing.assert_close(
        sample_correlation(images, values, vectors), sample_correlation(images, values, turned)
    )
