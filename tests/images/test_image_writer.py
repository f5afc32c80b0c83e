"""An image set written in pieces is the set that ``save`` writes in one."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from emptyset.errors import ImagesError
from emptyset.images.image_set import CARD_NAME, FILE_NAME, Batch, ImageSet
from emptyset.images.image_writer import ImageSetWriter

HISTORY = ({"stage": "synthesize", "method": "none", "seed": 5},)


def some(count: int, kind: str) -> ImageSet:
    generator = torch.Generator().manual_seed(count)
    images = torch.randn(count, 2, 3, 5, generator=generator)
    targets = {
        "none": None,
        "indices": torch.randint(7, (count,), generator=generator),
        "probabilities": torch.rand(count, 4, generator=generator),
    }
    return ImageSet(images, targets[kind], history=HISTORY)


@pytest.mark.parametrize("kind", ["none", "indices", "probabilities"])
def test_pieces_become_the_set_that_save_writes(tmp_path: Path, kind: str) -> None:
    whole = some(11, kind)
    expected = whole.save(tmp_path / "whole")
    with ImageSetWriter(tmp_path / "pieces", 11) as writer:
        for batch in whole.batches(4):
            writer.add(batch)
        card = writer.finish(HISTORY)
    assert card == expected
    written = json.loads((tmp_path / "pieces" / CARD_NAME).read_text(encoding="utf-8"))
    assert written == expected
    assert sorted(p.name for p in (tmp_path / "pieces").iterdir()) == [CARD_NAME, FILE_NAME]
    # The format wants the tensors at a multiple of 8 bytes.
    assert int.from_bytes((tmp_path / "pieces" / FILE_NAME).read_bytes()[:8], "little") % 8 == 0
    # Read by the format's own library, not by ours.
    tensors = load_file(tmp_path / "pieces" / FILE_NAME)
    assert set(tensors) == {"images"} | ({"targets"} if kind != "none" else set())
    assert torch.equal(tensors["images"], whole.images)
    if whole.targets is not None:
        assert torch.equal(tensors["targets"], whole.targets)
        assert tensors["targets"].dtype == whole.targets.dtype
    assert ImageSet.load(tmp_path / "pieces").digest() == card["digest"]


def test_images_in_any_memory_layout_are_written_in_their_order(tmp_path: Path) -> None:
    whole = some(6, "none").images
    with ImageSetWriter(tmp_path, 6) as writer:
        writer.add(Batch(whole.contiguous(memory_format=torch.channels_last), None))
        writer.finish(())
    assert torch.equal(ImageSet.load(tmp_path).images, whole)


def test_a_piece_is_on_the_disk_before_the_next_one_comes(tmp_path: Path) -> None:
    images = torch.zeros(4, 3, 64, 64)
    with ImageSetWriter(tmp_path, 12) as writer:
        for number in range(1, 4):
            writer.add(Batch(images, None))
            (part,) = tmp_path.iterdir()
            assert part.stat().st_size >= number * images.numel() * 4
        writer.finish(())


def test_nothing_is_left_when_the_images_stop_coming(tmp_path: Path) -> None:
    def interrupted() -> None:
        with ImageSetWriter(tmp_path, 9) as writer:
            writer.add(Batch(some(4, "none").images, None))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_an_old_set_stays_until_the_new_one_is_finished(tmp_path: Path) -> None:
    old = some(3, "indices")
    old.save(tmp_path)
    with ImageSetWriter(tmp_path, 5) as writer:
        writer.add(Batch(some(5, "none").images, None))
        assert ImageSet.load(tmp_path).digest() == old.digest()
        writer.finish(HISTORY)
    assert ImageSet.load(tmp_path).digest() == some(5, "none").digest()


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (Batch(torch.zeros(2, 2, 3, 4), torch.zeros(2, dtype=torch.long)), "of one shape"),
        (Batch(torch.zeros(2, 2, 3, 5), None), "all or none"),
        (Batch(torch.zeros(2, 2, 3, 5), torch.zeros(2, 4)), "targets of one kind"),
        (Batch(torch.zeros(2, 2, 3, 5), torch.zeros(2, dtype=torch.int32)), "targets of one kind"),
        (Batch(torch.zeros(8, 2, 3, 5), torch.zeros(8, dtype=torch.long)), "11 came"),
        (Batch(torch.full((1, 2, 3, 5), torch.nan), None), "NaN"),
    ],
)
def test_a_piece_that_does_not_belong_is_refused(tmp_path: Path, second: Batch, said: str) -> None:
    first = some(3, "indices")
    with ImageSetWriter(tmp_path, 10) as writer:
        writer.add(Batch(first.images, first.targets))
        with pytest.raises(ImagesError, match=said):
            writer.add(second)


@pytest.mark.parametrize("given", [0, 3])
def test_a_set_that_is_not_complete_cannot_be_finished(tmp_path: Path, given: int) -> None:
    with ImageSetWriter(tmp_path, 4) as writer:
        if given:
            writer.add(Batch(some(given, "none").images, None))
        with pytest.raises(ImagesError, match=f"4 images were announced, {given} came"):
            writer.finish(())
    assert list(tmp_path.iterdir()) == []
