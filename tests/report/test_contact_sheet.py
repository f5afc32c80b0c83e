"""The contact sheet: which images are shown, small, class by class, real ones beside them."""

import base64
import io
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emptyset.errors import RunFolderError
from emptyset.images.folder import load_images
from emptyset.images.image_set import ImageSet
from emptyset.report.contact_sheet import ContactSheet, contact_sheet
from emptyset.report.images_page import write_quality_page
from emptyset.teachers.teacher import InputSpec

SPEC = InputSpec((3, 6, 5), (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))


def images(labels: list[int] | None, count: int = 0, seed: int = 0) -> ImageSet:
    count = count or len(labels or [])
    pixels = torch.rand(count, 3, 6, 5, generator=torch.Generator().manual_seed(seed))
    targets = None if labels is None else torch.tensor(labels)
    return ImageSet(SPEC.normalise(pixels), targets)


def read(address: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))


def expected(given: ImageSet, index: int) -> np.ndarray:
    return (SPEC.pixels(given.images[index]) * 255).round().byte().permute(1, 2, 0).numpy()


def test_every_class_has_its_group_and_its_pictures_are_the_images() -> None:
    given = images([2, 0, 2, 2])
    groups = contact_sheet(given, SPEC, class_names=["cat", "dog", "eel"]).groups()
    assert [group.name for group in groups] == ["cat", "eel"]
    assert np.array_equal(read(groups[0].images[0]), expected(given, 1))
    for address, index in zip(groups[1].images, (0, 2, 3), strict=True):
        assert np.array_equal(read(address), expected(given, index))
    assert all(group.real == [] for group in groups)


def test_real_images_of_the_same_classes_stand_beside() -> None:
    made, real = images([2, 0, 2]), images([1, 2, 2, 0], seed=1)
    groups = contact_sheet(made, SPEC, real=real).groups()
    assert [group.name for group in groups] == ["class 0", "class 2"]
    assert np.array_equal(read(groups[0].real[0]), expected(real, 3))
    assert [len(group.real) for group in groups] == [1, 2]


def test_a_class_without_real_images_has_none() -> None:
    groups = contact_sheet(images([1, 4]), SPEC, real=images([4], seed=1)).groups()
    assert [len(group.real) for group in groups] == [0, 1]


@pytest.mark.parametrize(("made", "real"), [(None, None), (None, [0, 1]), ([0, 1], None)])
def test_without_classes_on_one_side_all_are_one_group(
    made: list[int] | None, real: list[int] | None
) -> None:
    sheet = (
        contact_sheet(images(made, 7), SPEC, real=images(real, 2, seed=1))
        if not made
        else (contact_sheet(images(made), SPEC, real=images(real, 3, seed=1)))
    )
    (group,) = sheet.groups()
    assert group.name == ""
    assert len(group.images) == (7 if not made else 2)
    assert len(group.real) == (2 if not made else 3)


def test_soft_targets_count_as_their_likeliest_class() -> None:
    soft = torch.tensor([[0.1, 0.9], [0.6, 0.4]])
    given = replace(images(None, 2), targets=soft)
    assert [group.name for group in contact_sheet(given, SPEC).groups()] == ["class 0", "class 1"]


@pytest.mark.parametrize(
    ("classes", "each", "groups", "shown"),
    # 96 tiles: 8 of a class at most; 19 classes, 5 of each, are 4 in a row; 20 of 40 are shown.
    [(3, 20, 3, 8), (19, 6, 19, 4), (40, 9, 20, 4)],
)
def test_as_many_tiles_as_fit(classes: int, each: int, groups: int, shown: int) -> None:
    labels = list(range(classes)) * each
    found = contact_sheet(images(labels), SPEC).groups()
    assert [len(group.images) for group in found] == [shown] * groups
    numbers = [int(group.name.split()[1]) for group in found]
    # Spread evenly over the classes.
    steps = {later - earlier for earlier, later in itertools.pairwise(numbers)}
    assert steps == {classes // groups}


def test_large_sets_without_classes_are_spread_over() -> None:
    given = images(None, 200)
    (group,) = contact_sheet(given, SPEC, most_tiles=20).groups()
    assert (group.name, len(group.images)) == ("", 10)
    for number, address in enumerate(group.images):
        assert np.array_equal(read(address), expected(given, 20 * number))


def test_large_images_become_small_by_averaging() -> None:
    spec = InputSpec((1, 144, 288), (0.0,), (1.0,))
    pixels = torch.rand(1, 1, 144, 288, generator=torch.Generator().manual_seed(0))
    (group,) = contact_sheet(ImageSet(pixels), spec).groups()
    small = read(group.images[0])
    assert small.shape == (36, 72)
    means = pixels[0, 0].double().numpy().reshape(36, 4, 72, 4).mean((1, 3)) * 255
    assert np.abs(small - means).max() <= 0.51


def test_of_images_on_disk_only_those_that_are_shown_are_read(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0)
    labels = np.array([1, 0, 1, 0, 1, 1])
    pixels = drawn.integers(0, 256, (6, 6, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "real.npz", images=pixels, labels=labels)
    lazy = load_images(tmp_path / "real.npz", SPEC)
    read_indices: list[int] = []

    def watched(indices: torch.Tensor, size: int) -> object:
        read_indices.extend(indices.tolist())
        return lazy.read(indices, size)

    sheet = contact_sheet(images([1, 0]), SPEC, real=replace(lazy, read=watched), most_tiles=2)
    assert read_indices == [0, 1]
    groups = sheet.groups()
    assert np.array_equal(read(groups[0].real[0]), pixels[1])
    assert np.array_equal(read(groups[1].real[0]), pixels[0])


def test_a_sheet_reads_back_as_it_was_written(tmp_path: Path) -> None:
    sheet = contact_sheet(
        images([0, 3, 3]), SPEC, real=images([3, 0], seed=1), class_names=["a", "b", "c", "<d>"]
    )
    sheet.save(tmp_path / "sub" / "sheet.safetensors")
    back = ContactSheet.load(tmp_path / "sub" / "sheet.safetensors")
    assert back.groups() == sheet.groups()
    assert back.count == 3
    alone = contact_sheet(images(None, 2), SPEC)
    alone.save(tmp_path / "alone.safetensors")
    assert ContactSheet.load(tmp_path / "alone.safetensors").groups() == alone.groups()


@pytest.mark.parametrize("content", [None, b"half"])
def test_a_sheet_that_cannot_be_read_says_what_to_do(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "sheet.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunFolderError, match="Run the same command again"):
        ContactSheet.load(path)


def test_the_page_about_images_names_everything_and_escapes_it(tmp_path: Path) -> None:
    quality = {
        "count": 3, "clip": {"similarity": 0.5, "similarity_within_class": None},
        "distance": {"sum_l2": 1.25, "sum_l2_spread": 0.5, "mean_mse": 2e-3,
                     "mean_mse_spread": None},
        "diversity": {"similarity": 0.25, "similarity_within_class": 0.75,
                      "similarity_to_others": 0.3, "class_agreement": None},
    }  # fmt: skip
    result = {
        "emptyset": "0", "path": "made", "real_path": "photos", "images": quality,
        "real": quality | {"count": 2}, "teacher": {"name": "file:x", "weights_hash": "ab" * 32},
    }  # fmt: skip
    sheet = contact_sheet(images([1, 1]), SPEC, real=images([1], seed=1), class_names=["", "<b>"])
    write_quality_page(tmp_path / "page.html", result, sheet)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    for text in ("1.25 ± 0.5", "0.002", "0.250", "0.750", "CLIP similarity, all pairs", "photos"):
        assert text in page, text
    assert "CLIP similarity within a class" not in page
    assert page.count("data:image/png;base64,") == 3
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
