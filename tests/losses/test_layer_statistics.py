"""Moments of a layer: of features without pixels, and of a batch as a part of a whole set."""

import pytest
import torch
from torch import Tensor

from emptyset.losses.batch_norm_statistics import (
    batch_statistics,
    deep_inversion_statistics,
    gdfq_statistics,
    genie_statistics,
    zeroq_statistics,
)
from emptyset.losses.gaussian_divergence import gaussian_divergence
from emptyset.losses.layer_statistics import Elsewhere, LayerStatistics, layer_statistics

MEAN, VAR = torch.tensor([0.2, -0.4, 1.1]).double(), torch.tensor([0.5, 2.0, 1.3]).double()


def features(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(count, 3, 4, 5, generator=generator, dtype=torch.double) + 0.3


def within(batch: Tensor, rest: Tensor) -> LayerStatistics:
    """The batch, beside images elsewhere."""
    own, other = layer_statistics(batch, MEAN, VAR), layer_statistics(rest, MEAN, VAR)
    elsewhere = Elsewhere(
        other.shift.mean(0), other.square.mean(0), torch.tensor(float(len(rest))).double()
    )
    return LayerStatistics(own.shift, own.square, own.pixels, own.stored_var, elsewhere)


@pytest.mark.parametrize("correction", [0, 1])
def test_a_batch_and_what_is_elsewhere_have_the_statistics_of_all_images_together(
    correction: int,
) -> None:
    batch, rest = features(2, seed=0), features(5, seed=1)
    found = within(batch, rest)
    var, mean = torch.var_mean(torch.cat([batch, rest]), (0, 2, 3), correction=correction)
    torch.testing.assert_close(found.batch_shift(), mean - MEAN)
    torch.testing.assert_close(found.batch_variance(correction=correction), var)


@pytest.mark.parametrize(
    "loss",
    [gdfq_statistics, deep_inversion_statistics, batch_statistics, gaussian_divergence],
)
def test_the_gradient_is_that_of_the_whole_sets_loss_times_the_number_of_batches(
    loss: object,
) -> None:
    # Three batches of two: one here, two elsewhere.
    batch, rest = features(2, seed=0).requires_grad_(), features(4, seed=1)
    value = loss([within(batch, rest)])  # type: ignore[operator]
    (found,) = torch.autograd.grad(value, [batch])

    everything = torch.cat([batch.detach(), rest]).requires_grad_()
    whole = loss([layer_statistics(everything, MEAN, VAR)])  # type: ignore[operator]
    (expected,) = torch.autograd.grad(whole, [everything])
    torch.testing.assert_close(value, whole)
    torch.testing.assert_close(found, 3 * expected[:2])


def test_with_nothing_elsewhere_it_is_the_batch_to_the_last_bit() -> None:
    x = features(4, seed=0).float()
    own = layer_statistics(x, MEAN.float(), VAR.float())
    nothing = Elsewhere(torch.zeros(3), torch.zeros(3), torch.zeros(()))
    joint = LayerStatistics(own.shift, own.square, own.pixels, own.stored_var, nothing)
    assert torch.equal(joint.batch_shift(), own.batch_shift())
    assert torch.equal(joint.batch_variance(correction=0), own.batch_variance(correction=0))
    torch.testing.assert_close(genie_statistics([joint]), genie_statistics([own]))


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 7)])
def test_features_of_batch_norm_1d_count_as_one_row_of_pixels(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    found = layer_statistics(x, MEAN, VAR)
    axes = (0, 2)[: x.dim() - 1]
    var, mean = torch.var_mean(x, axes, correction=0)
    torch.testing.assert_close(found.batch_shift(), mean - MEAN)
    torch.testing.assert_close(found.batch_variance(correction=0), var)
    assert found.pixels == x[0, 0].numel()


def test_layers_of_one_pixel_have_no_spread_per_image_and_are_left_out() -> None:
    wide = layer_statistics(features(4, seed=0), MEAN, VAR)
    narrow = layer_statistics(features(4, seed=1)[:, :, 0, 0], MEAN, VAR)
    assert zeroq_statistics([wide, narrow]) == zeroq_statistics([wide])
    with pytest.raises(ValueError, match=r"more than one pixel.*'statistics' to 'batch'"):
        zeroq_statistics([narrow])
