"""The distance from stored statistics, by torch's own statistics."""

import pytest
import torch
from torch import nn

from emptyset.errors import ImagesError, UnsupportedModelError
from emptyset.evaluate.batch_norm_distance import batch_norm_distance
from emptyset.images.image_set import ImageSet
from emptyset.teachers.teacher import InputSpec, Teacher


def teacher(mean: float = 0.5, std: float = 0.25) -> Teacher:
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 2), nn.BatchNorm2d(3)
    )
    with torch.no_grad():
        for norm in (module[1], module[4]):
            norm.running_mean.copy_(torch.randn(norm.num_features, generator=generator))
            norm.running_var.copy_(0.5 + torch.rand(norm.num_features, generator=generator))
        for parameter in (*module[0].parameters(), *module[3].parameters()):
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    spec = InputSpec((2, 6, 7), (mean,) * 2, (std,) * 2)
    return Teacher("test:net", module.requires_grad_(False).eval(), spec)


def images(count: int) -> ImageSet:
    return ImageSet(torch.randn(count, 2, 6, 7, generator=torch.Generator().manual_seed(1)))


def by_hand(given: Teacher, part: torch.Tensor, variance: bool) -> tuple[float, float]:
    total = mean_square = 0.0
    x = part
    for layer in given.module:  # type: ignore[union-attr]
        if isinstance(layer, nn.BatchNorm2d):
            v, m = torch.var_mean(x, (0, 2, 3), correction=0)
            gap = v - layer.running_var if variance else v.sqrt() - layer.running_var.sqrt()
            total += float((m - layer.running_mean).norm() + gap.norm())
            squares = (m - layer.running_mean).square().mean() + gap.square().mean()
            mean_square += float(squares) / 2
        x = layer(x)
    return total, mean_square


@pytest.mark.parametrize("variance", [False, True])
@pytest.mark.parametrize("std", [0.25, 1 / 255])
def test_it_is_what_torchs_statistics_give_over_whole_batches(variance: bool, std: float) -> None:
    # With std 1/255 the teacher's units are not the standardised ones.
    given = teacher(std=std)
    found = batch_norm_distance(images(11), given, batch_size=4, variance=variance)
    parts = [by_hand(given, images(11).images[s : s + 4], variance) for s in (0, 4)]
    sums, means = zip(*parts, strict=True)
    assert found.sum_l2 == pytest.approx(sum(sums) / 2, rel=1e-4)
    assert found.mean_mse == pytest.approx(sum(means) / 2, rel=1e-4)
    assert found.sum_l2_spread == pytest.approx(abs(sums[0] - sums[1]) / 2**0.5, rel=1e-2)
    assert found.mean_mse_spread == pytest.approx(abs(means[0] - means[1]) / 2**0.5, rel=1e-2)
    assert (found.batch_size, found.count) == (4, 8)


def test_images_that_cause_the_stored_statistics_have_no_distance() -> None:
    given, own = teacher(), images(16)
    module = given.module
    first = module[0](own.images)  # type: ignore[index]
    for norm, before in ((1, first), (4, None)):
        x = before if before is not None else module[:4](own.images)  # type: ignore[index]
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        module[norm].running_mean.copy_(mean)  # type: ignore[index,operator,union-attr]
        module[norm].running_var.copy_(variance)  # type: ignore[index,operator,union-attr]
    found = batch_norm_distance(own, given)
    assert found.sum_l2 == pytest.approx(0.0, abs=1e-4)
    assert found.sum_l2_spread is None
    assert found.to_json()["count"] == 16


def test_what_cannot_be_measured_is_refused() -> None:
    bare = Teacher("test:bare", nn.Flatten(), InputSpec((2, 6, 7), (0.5,) * 2, (0.25,) * 2))
    with pytest.raises(UnsupportedModelError, match="no BatchNorm2d"):
        batch_norm_distance(images(4), bare)
    with pytest.raises(ImagesError, match="at least 2 images"):
        batch_norm_distance(images(1), teacher())
