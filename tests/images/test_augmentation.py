"""Shifts and mirrors move pixels, each image its own way."""

import torch

from emptyset.images.augmentation import mirrored, shifted
from emptyset.images.image_set import ImageSet
from emptyset.images.image_source import StoredImages


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_image_is_a_crop_of_its_padded_self() -> None:
    images = torch.randn(6, 3, 5, 7, generator=seeded())
    moved = shifted(images, 2, seeded(1))
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    places = []
    for image, source in zip(moved, padded, strict=True):
        found = [
            (row, column)
            for row in range(5)
            for column in range(5)
            if torch.equal(image, source[:, row : row + 5, column : column + 7])
        ]
        assert len(found) == 1
        places += found
    assert len(set(places)) > 2
    assert torch.equal(shifted(images, 0, seeded()), images)


def test_mirroring_reaches_some_images_and_turns_left_and_right() -> None:
    images = torch.randn(40, 2, 3, 5, generator=seeded())
    out = mirrored(images, 0.5, seeded(1))
    turned = [torch.equal(a, b.flip(2)) for a, b in zip(out, images, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(out, images, strict=True)]
    assert all(a != b for a, b in zip(turned, kept, strict=True))
    assert 10 < sum(turned) < 30
    assert torch.equal(mirrored(images, 0.0, seeded()), images)


def test_a_stored_source_goes_on_where_it_was() -> None:
    images = ImageSet(torch.randn(5, 3, 4, 4, generator=seeded()))
    source, again = StoredImages(images, seed=1), StoredImages(images, seed=2)
    source.next_batch(3)
    state = {name: value.clone() for name, value in source.state().items()}
    expected = [source.next_batch(4).images for _ in range(3)]
    again.load_state(state)
    assert all(torch.equal(again.next_batch(4).images, batch) for batch in expected)
