"""Mixup and CutMix mix images in the shares that they report."""

import pytest
import torch

from emptyset.images.image_set import Batch
from emptyset.images.mixing import mixed
from emptyset.refiners.training_parts import mixed_batch

IMAGES = torch.rand(7, 3, 12, 10, generator=torch.Generator().manual_seed(0))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def test_mixup_is_the_weighted_mean_of_an_image_and_its_partner() -> None:
    found, partners, shares = mixed(IMAGES, "mixup", generator())
    for n in range(7):
        expected = shares[n] * IMAGES[n] + (1 - shares[n]) * IMAGES[partners[n]]
        torch.testing.assert_close(found[n], expected)
    assert sorted(partners.tolist()) == list(range(7))
    assert shares.unique().numel() == 7


def test_cutmix_pastes_a_box_of_the_partner_and_reports_its_true_area() -> None:
    many = torch.rand(64, 2, 12, 10, generator=torch.Generator().manual_seed(1))
    found, partners, shares = mixed(many, "cutmix", generator())
    for n in range(64):
        if partners[n] == n:
            continue
        pasted = (found[n] == many[partners[n]]).all(0)
        kept = (found[n] == many[n]).all(0)
        assert torch.equal(pasted, ~kept)
        assert shares[n].item() == pytest.approx(kept.float().mean().item(), abs=1e-6)
        rows, columns = pasted.any(1).nonzero().flatten(), pasted.any(0).nonzero().flatten()
        # A box: as many pixels as its sides multiplied.
        if pasted.any():
            assert rows.numel() * columns.numel() == int(pasted.sum())
            assert rows[-1] - rows[0] + 1 == rows.numel()
    # Boxes cut off at edges: the mean share of the image is above one half.
    assert 0.5 < shares.mean() < 0.75


def test_labels_are_mixed_in_the_same_shares() -> None:
    labels = torch.tensor([0, 3, 1, 1, 2, 0, 3])
    batch = mixed_batch(Batch(IMAGES, labels), "mixup", 4, generator())
    _, partners, shares = mixed(IMAGES, "mixup", generator())
    assert batch.targets is not None
    expected = torch.zeros(7, 4)
    for n in range(7):
        expected[n, labels[n]] += shares[n]
        expected[n, labels[partners[n]]] += 1 - shares[n]
    torch.testing.assert_close(batch.targets, expected)
    assert mixed_batch(Batch(IMAGES, None), "cutmix", 4, generator()).targets is None


@pytest.mark.parametrize("method", ["mixup", "cutmix"])
def test_images_alone_are_mixed_alike_and_lose_their_labels(method: str) -> None:
    labels = torch.tensor([0, 3, 1, 1, 2, 0, 3])
    both = mixed_batch(Batch(IMAGES, labels), method, 4, generator())
    alone = mixed_batch(Batch(IMAGES, labels), f"{method}_images", 4, generator())
    assert torch.equal(alone.images, both.images)
    assert alone.targets is None


def test_another_method_is_refused() -> None:
    with pytest.raises(ValueError, match="mixup or cutmix"):
        mixed(IMAGES, "blend", generator())


@pytest.mark.parametrize("method", ["mixup", "cutmix"])
def test_partners_come_first_from_the_generator_and_shares_after_them(method: str) -> None:
    """So that a run of an older version, or on another device, draws the same."""
    _, partners, shares = mixed(IMAGES, method, generator())
    random = generator()
    assert torch.equal(partners, torch.randperm(7, generator=random))
    if method == "mixup":
        assert torch.equal(shares, torch.rand(7, generator=random))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU of NVIDIA")
@pytest.mark.parametrize("method", ["mixup", "cutmix"])
def test_a_gpu_mixes_without_being_waited_for(method: str) -> None:
    images = IMAGES.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = mixed(images, method, generator())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, expected in zip(found, mixed(IMAGES, method, generator()), strict=True):
        torch.testing.assert_close(ours.cpu(), expected)
