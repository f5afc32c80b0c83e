"""Shards: what is written comes back, and damage is noticed."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from emptyset.errors import ImagesError
from emptyset.images.image_set import ImageSet
from emptyset.images.shards import read_shards, write_shards

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(7, 3, 4, 5, generator=GENERATOR)


@pytest.mark.parametrize(
    "targets", [None, torch.arange(7), torch.rand(7, 3, generator=GENERATOR)], ids=str
)
def test_everything_comes_back(tmp_path: Path, targets: torch.Tensor | None) -> None:
    stored = ImageSet(
        IMAGES, targets, {"energy": torch.arange(7.0) / 3}, ({"stage": "test", "method": "x"},)
    )
    paths = write_shards(stored, tmp_path, per_shard=3)
    assert [p.name for p in paths] == [f"images-00000{i}.tar" for i in range(3)]
    opened = read_shards(tmp_path)
    assert len(opened) == 7
    assert [len(batch.images) for batch in opened.batches(4)] == [4, 3]
    found = opened.image_set()
    assert torch.equal(found.images, IMAGES)
    assert torch.equal(found.scores["energy"], stored.scores["energy"])
    assert found.history == stored.history
    assert found.digest() == stored.digest()
    assert (found.targets is None) == (targets is None)


def test_the_layout_is_that_of_webdataset(tmp_path: Path) -> None:
    (path,) = write_shards(ImageSet(IMAGES, torch.arange(7)), tmp_path)
    with tarfile.open(path) as archive:
        names = archive.getnames()
        image = archive.extractfile("000000004.npy")
        sample = archive.extractfile("000000004.json")
        assert image is not None
        assert sample is not None
        assert np.array_equal(np.load(io.BytesIO(image.read())), IMAGES[4].numpy())
        assert json.loads(sample.read())["target"] == 4
    assert names[:4] == ["000000000.npy", "000000000.json", "000000001.npy", "000000001.json"]


def test_the_same_images_give_the_same_bytes(tmp_path: Path) -> None:
    a, b = (write_shards(ImageSet(IMAGES), tmp_path / n)[0].read_bytes() for n in "ab")
    assert a == b


def test_a_missing_or_truncated_shard_or_card_is_an_error(tmp_path: Path) -> None:
    paths = write_shards(ImageSet(IMAGES), tmp_path, per_shard=4)
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole[:1700])
    with pytest.raises(ImagesError, match=r"not a readable shard|shards hold"):
        read_shards(tmp_path).image_set()
    paths[1].unlink()
    with pytest.raises(ImagesError, match=r"images-000001\.tar: not a readable shard"):
        list(read_shards(tmp_path).batches(2))
    (tmp_path / "card.json").unlink()
    with pytest.raises(ImagesError, match="not a folder of finished shards"):
        read_shards(tmp_path)


def test_another_image_than_the_card_names_is_an_error(tmp_path: Path) -> None:
    write_shards(ImageSet(IMAGES), tmp_path / "a")
    write_shards(ImageSet(IMAGES + 1), tmp_path / "b")
    card = tmp_path / "a" / "card.json"
    (tmp_path / "b" / "card.json").write_bytes(card.read_bytes())
    with pytest.raises(ImagesError, match="not those that the card names"):
        read_shards(tmp_path / "b").image_set()


def test_an_image_sets_own_card_is_not_taken_for_shards(tmp_path: Path) -> None:
    ImageSet(IMAGES).save(tmp_path)
    with pytest.raises(ImagesError, match="does not describe"):
        read_shards(tmp_path)
    with pytest.raises(ImagesError, match="at least 1"):
        write_shards(ImageSet(IMAGES), tmp_path, per_shard=0)
