"""Shards: what is written comes back, part by part too, and damage is noticed."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from emptyset.errors import ImagesError
from emptyset.images.folder import load_images
from emptyset.images.image_set import CARD_NAME, FILE_NAME, Batch, ImageSet
from emptyset.images.shard_writer import ShardWriter, write_shards
from emptyset.images.shards import holds_shards, read_shards
from emptyset.teachers.teacher import InputSpec

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(7, 3, 4, 5, generator=GENERATOR)
SPEC = InputSpec((3, 4, 5), (0.5,) * 3, (0.25,) * 3)
HISTORY = ({"stage": "test", "method": "x"},)
TARGETS = {
    "none": None,
    "indices": torch.arange(7),
    "probabilities": torch.rand(7, 2, generator=GENERATOR),
}


def shards_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar"))


def unpacked(path: Path) -> list[tuple[str, bytes]]:
    """Names and contents of an archive, read by the standard library alone."""
    with tarfile.open(path) as archive:
        return [(m.name, archive.extractfile(m).read()) for m in archive]  # type: ignore[union-attr]


def packed(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("kind", TARGETS)
def test_everything_comes_back(tmp_path: Path, kind: str) -> None:
    targets = TARGETS[kind]
    stored = ImageSet(IMAGES, targets, {"energy": torch.arange(7.0) / 3}, HISTORY)
    card = write_shards(stored, tmp_path, per_shard=3)
    assert [p.name for p in shards_of(tmp_path)] == [f"images-00000{i}.tar" for i in range(3)]
    assert card == json.loads((tmp_path / CARD_NAME).read_text(encoding="utf-8"))
    assert (card["count"], card["digest"]) == (7, stored.digest())
    for found in (read_shards(tmp_path).image_set(), ImageSet.load(tmp_path)):
        assert torch.equal(found.images, IMAGES)
        assert torch.equal(found.scores["energy"], stored.scores["energy"])
        assert found.history == stored.history
        assert found.digest() == stored.digest()
        assert (found.targets is None) == (targets is None)


@pytest.mark.parametrize("kind", TARGETS)
def test_pieces_become_the_same_bytes(tmp_path: Path, kind: str) -> None:
    whole = ImageSet(IMAGES, TARGETS[kind], history=HISTORY)
    expected = write_shards(whole, tmp_path / "whole", per_shard=2)
    with ShardWriter(tmp_path / "pieces", 7, per_shard=2) as writer:
        for batch in whole.batches(3):
            writer.add(batch)
        assert writer.finish(HISTORY) == expected
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "pieces").iterdir())
    assert len(names) == 5
    for name in names:
        one, other = (tmp_path / part / name for part in ("whole", "pieces"))
        assert one.read_bytes() == other.read_bytes()


def test_the_layout_is_that_of_webdataset(tmp_path: Path) -> None:
    write_shards(ImageSet(IMAGES, torch.arange(7) + 2), tmp_path)
    members = unpacked(*shards_of(tmp_path))
    names = [name for name, _ in members]
    assert names[:4] == ["000000000.npy", "000000000.json", "000000001.npy", "000000001.json"]
    content = dict(members)
    assert np.array_equal(np.load(io.BytesIO(content["000000004.npy"])), IMAGES[4].numpy())
    assert json.loads(content["000000004.json"])["target"] == 6


def test_a_folder_of_shards_is_read_in_batches_and_in_parts(tmp_path: Path) -> None:
    write_shards(ImageSet(IMAGES, TARGETS["indices"], history=HISTORY), tmp_path, per_shard=3)
    images = load_images(tmp_path, SPEC)
    assert (len(images), images.layout, images.history) == (7, "image set", HISTORY)
    batches = list(images.batches(5))
    assert [len(batch.images) for batch in batches] == [5, 2]
    assert torch.equal(torch.cat([batch.images for batch in batches]), IMAGES)
    few = load_images(tmp_path, SPEC, limit=3).image_set()
    # 0, 7/3 and 14/3, rounded down: one image of each of two shards, two of none.
    assert torch.equal(few.images, IMAGES[[0, 2, 4]])
    assert few.targets is not None
    assert few.targets.tolist() == [0, 2, 4]


def test_one_shard_is_a_set_of_its_own(tmp_path: Path) -> None:
    write_shards(ImageSet(IMAGES, TARGETS["indices"]), tmp_path, per_shard=4)
    images = load_images(shards_of(tmp_path)[1], SPEC)
    (batch,) = images.batches(10)
    assert torch.equal(batch.images, IMAGES[4:])
    assert batch.targets is not None
    assert batch.targets.tolist() == [4, 5, 6]
    assert len(ImageSet.load(shards_of(tmp_path)[0])) == 4


def test_what_was_there_before_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "images-000077.tar").write_bytes(b"somebody's")
    ImageSet(IMAGES[:2]).save(tmp_path)
    write_shards(ImageSet(IMAGES), tmp_path, per_shard=2)
    assert not (tmp_path / FILE_NAME).exists()
    assert len(shards_of(tmp_path)) == 5
    write_shards(ImageSet(IMAGES), tmp_path, per_shard=4)
    assert len(shards_of(tmp_path)) == 3
    assert len(load_images(tmp_path, SPEC)) == 7
    ImageSet(IMAGES[:5]).save(tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["card.json", "images-000077.tar", "images.safetensors"]
    assert len(load_images(tmp_path, SPEC)) == 5


def test_nothing_is_left_when_the_images_stop_coming(tmp_path: Path) -> None:
    old = ImageSet(IMAGES[:3])
    write_shards(old, tmp_path)

    def interrupted() -> None:
        with ShardWriter(tmp_path, 9, per_shard=2) as writer:
            writer.add(Batch(IMAGES, None))
            assert len(list(tmp_path.iterdir())) == 2 + 4
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card.json", "images-000000.tar"]
    assert ImageSet.load(tmp_path).digest() == old.digest()


def test_a_missing_or_truncated_shard_or_card_is_an_error(tmp_path: Path) -> None:
    write_shards(ImageSet(IMAGES), tmp_path, per_shard=4)
    last = shards_of(tmp_path)[1]
    whole = last.read_bytes()
    last.write_bytes(whole[:1700])
    with pytest.raises(ImagesError, match=r"000001\.tar: not a readable shard|shards hold"):
        read_shards(tmp_path)
    last.unlink()
    with pytest.raises(ImagesError, match=r"images-000001\.tar: not a readable shard"):
        load_images(tmp_path, SPEC)
    (tmp_path / CARD_NAME).unlink()
    with pytest.raises(ImagesError, match="not a folder of finished shards"):
        read_shards(tmp_path)


def test_a_shard_that_goes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    write_shards(ImageSet(IMAGES), tmp_path, per_shard=4)
    batches = load_images(tmp_path, SPEC).batches(4)
    next(batches)
    shards_of(tmp_path)[1].write_bytes(b"")
    with pytest.raises(ImagesError, match=r"images-000001\.tar: not a readable shard"):
        next(batches)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("000000001.npy", np.zeros((3, 4, 6), np.float32), r"shape \(3, 4, 6\)"),
        ("000000001.npy", np.zeros((3, 4, 5)), "type torch.float64"),
        ("000000001.npy", np.full((3, 4, 5), np.nan, np.float32), "NaN or infinity"),
        ("000000001.json", {"target": 1}, "scores"),
        ("000000001.json", {"scores": {}}, "target"),
        ("000000001.txt", {"scores": {}}, r"no 000000001\.json behind 000000001\.npy"),
    ],
)
def test_samples_that_are_not_what_the_card_says_are_refused(
    tmp_path: Path, name: str, data: object, said: str
) -> None:
    write_shards(ImageSet(IMAGES, torch.arange(7)), tmp_path)
    (path,) = shards_of(tmp_path)
    content = io.BytesIO()
    if isinstance(data, np.ndarray):
        np.save(content, data)
    else:
        content.write(json.dumps(data).encode())
    members = [
        (name if old == name or (name.endswith("txt") and old == "000000001.json") else old, value)
        for old, value in unpacked(path)
    ]
    packed(path, [(old, content.getvalue() if old == name else value) for old, value in members])
    with pytest.raises(ImagesError, match=said):
        list(load_images(tmp_path, SPEC).batches(7))


def test_a_lost_sample_is_an_error(tmp_path: Path) -> None:
    write_shards(ImageSet(IMAGES), tmp_path)
    (path,) = shards_of(tmp_path)
    packed(path, unpacked(path)[2:])
    with pytest.raises(ImagesError, match="names 7 images, the shards hold 6"):
        load_images(tmp_path, SPEC)


def test_another_image_than_the_card_names_is_an_error(tmp_path: Path) -> None:
    write_shards(ImageSet(IMAGES), tmp_path / "a")
    write_shards(ImageSet(IMAGES + 1), tmp_path / "b")
    card = tmp_path / "a" / CARD_NAME
    (tmp_path / "b" / CARD_NAME).write_bytes(card.read_bytes())
    with pytest.raises(ImagesError, match="not those that the card names"):
        read_shards(tmp_path / "b").image_set()


def test_shards_of_others_and_other_sizes_are_explained(tmp_path: Path) -> None:
    write_shards(ImageSet(IMAGES), tmp_path / "own")
    larger = InputSpec((3, 8, 5), (0.5,) * 3, (0.25,) * 3)
    with pytest.raises(ImagesError, match="make them again for this teacher"):
        load_images(tmp_path / "own", larger)
    (tmp_path / "theirs").mkdir()
    packed(tmp_path / "theirs" / "train-000.tar", [("0.jpg", b"photo"), ("0.cls", b"3")])
    for path in (tmp_path / "theirs", tmp_path / "theirs" / "train-000.tar"):
        assert not holds_shards(path)
        with pytest.raises(ImagesError, match="Shards of others are not read: unpack"):
            load_images(path, SPEC)


def test_an_image_sets_own_card_is_not_taken_for_shards(tmp_path: Path) -> None:
    ImageSet(IMAGES).save(tmp_path)
    assert not holds_shards(tmp_path)
    with pytest.raises(ImagesError, match="does not describe"):
        read_shards(tmp_path)
    with pytest.raises(ImagesError, match="at least 1"):
        write_shards(ImageSet(IMAGES), tmp_path, per_shard=0)
