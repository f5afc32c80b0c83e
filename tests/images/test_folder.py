"""Images from disk: every layout, against arrays built by hand."""

import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emptyset.errors import ImagesError
from emptyset.images.folder import LazyImages, load_images, spread
from emptyset.images.image_set import ImageSet
from emptyset.teachers.teacher import InputSpec

SPEC = InputSpec((3, 4, 6), (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
GREY = InputSpec((1, 4, 6), (0.5,), (0.25,))


def pixels(count: int, height: int = 4, width: int = 6, channels: int = 3) -> np.ndarray:
    shape = (count, height, width, channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def expected(rows: np.ndarray, spec: InputSpec = SPEC) -> torch.Tensor:
    scaled = (rows.astype(np.float64) / 255 - np.array(spec.mean)) / np.array(spec.std)
    return torch.from_numpy(scaled.transpose(0, 3, 1, 2)).float()


def together(images: LazyImages, size: int = 2) -> torch.Tensor:
    return torch.cat([batch.images for batch in images.batches(size)])


def save(path: Path, row: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(row).save(path)


def test_photos_come_in_the_order_of_their_names_without_labels(tmp_path: Path) -> None:
    rows = pixels(3)
    for name, row in zip(("b.png", "c.BMP", "a.png"), rows, strict=True):
        save(tmp_path / name, row)
    (tmp_path / "notes.txt").write_text("no photo")
    (tmp_path / ".hidden.png").write_bytes(b"no photo")
    images = load_images(tmp_path, SPEC)
    assert len(images) == 3
    assert images.labels is None
    torch.testing.assert_close(together(images), expected(rows[[2, 0, 1]]))
    assert [len(batch.images) for batch in images.batches(2)] == [2, 1]


def class_folders(path: Path, names: list[str]) -> np.ndarray:
    rows = pixels(2 * len(names))
    for index, row in enumerate(rows):
        save(path / names[index // 2] / f"{index}.png", row)
    return rows


def test_subfolders_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    rows = class_folders(tmp_path, ["ant", "bee", "cow"])
    images = load_images(tmp_path, SPEC)
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 1, 1, 2, 2]
    torch.testing.assert_close(together(images, 4), expected(rows))
    targets = [batch.targets for batch in images.batches(4)]
    assert [t.tolist() for t in targets if t is not None] == [[0, 0, 1, 1], [2, 2]]


def test_subfolders_called_like_the_teachers_classes_get_their_indices(tmp_path: Path) -> None:
    class_folders(tmp_path, ["Polar_bear", "ant", "cow"])
    names = ["cow", "dog", "polar bear", "ant"]
    labels = load_images(tmp_path, SPEC, class_names=names).labels
    assert labels is not None
    assert labels.tolist() == [2, 2, 3, 3, 0, 0]


def test_subfolders_called_by_numbers_are_these_classes(tmp_path: Path) -> None:
    class_folders(tmp_path, ["10", "2", "7"])
    labels = load_images(tmp_path, SPEC).labels
    assert labels is not None
    assert labels.tolist() == [10, 10, 2, 2, 7, 7]


def test_numbers_that_are_no_indices_count_in_their_own_order(tmp_path: Path) -> None:
    class_folders(tmp_path, ["1", "10", "2", "9"])
    labels = load_images(tmp_path, SPEC, classes=lambda: 4).labels
    assert labels is not None
    assert labels.tolist() == [0, 0, 3, 3, 1, 1, 2, 2]


def test_subfolders_that_cannot_be_the_teachers_classes_are_refused(tmp_path: Path) -> None:
    class_folders(tmp_path, ["ant", "bee"])
    with pytest.raises(ImagesError, match=r"2 subfolders.*'ant'.*3 classes.*'x'"):
        load_images(tmp_path, SPEC, class_names=["x", "y", "z"])


def test_photos_of_another_size_are_resized_and_cut_out_in_the_centre(tmp_path: Path) -> None:
    row = pixels(1, 30, 20)[0]
    save(tmp_path / "tall.png", row)
    spec = InputSpec((3, 4, 6), SPEC.mean, SPEC.std, resize=10)
    # 20 × 30 wide × high becomes 10 × 15; the centre 6 × 4 begins at (2, 5.5 -> 6).
    small = Image.fromarray(row).resize((10, 15), Image.Resampling.BILINEAR).crop((2, 6, 8, 10))
    torch.testing.assert_close(
        together(load_images(tmp_path, spec)), expected(np.asarray(small)[None])
    )
    squeezed = Image.fromarray(row).resize((6, 4), Image.Resampling.BILINEAR)
    torch.testing.assert_close(
        together(load_images(tmp_path, SPEC)), expected(np.asarray(squeezed)[None])
    )


def test_a_photo_smaller_than_the_cut_is_enlarged(tmp_path: Path) -> None:
    save(tmp_path / "tiny.png", pixels(1, 3, 3)[0])
    spec = InputSpec((3, 4, 6), SPEC.mean, SPEC.std, resize=4)
    assert together(load_images(tmp_path, spec)).shape == (1, 3, 4, 6)


def test_grey_teachers_get_grey_photos_also_from_sixteen_bits(tmp_path: Path) -> None:
    row = pixels(1)[0, :, :, 0]
    save(tmp_path / "a.png", row)
    deep = row.astype(np.uint16) * 256 + 200
    Image.fromarray(deep).save(tmp_path / "b.png")
    images = together(load_images(tmp_path, GREY))
    for image in images:
        torch.testing.assert_close(image[None], expected(row[None, :, :, None], GREY))


@pytest.mark.parametrize("compressed", [False, True])
def test_npz_images_are_read_row_by_row_with_their_labels(tmp_path: Path, compressed: bool) -> None:
    rows = pixels(7)
    path = tmp_path / "images.npz"
    write = np.savez_compressed if compressed else np.savez
    write(path, images=rows, labels=np.arange(7, dtype=np.uint8) % 3)
    images = load_images(path, SPEC)
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    torch.testing.assert_close(together(images, 3), expected(rows))
    few = load_images(path, SPEC, limit=3)
    assert few.labels is not None
    assert few.labels.tolist() == [0, 2, 1]
    torch.testing.assert_close(together(few), expected(rows[[0, 2, 4]]))


def test_npz_images_of_another_size_are_resized_and_grey_ones_need_no_channel_axis(
    tmp_path: Path,
) -> None:
    rows = pixels(2, 8, 12, 1)[..., 0]
    path = tmp_path / "grey.npz"
    np.savez(path, images=rows)
    images = load_images(path, GREY)
    assert images.labels is None
    small = [Image.fromarray(r).resize((6, 4), Image.Resampling.BILINEAR) for r in rows]
    torch.testing.assert_close(together(images), expected(np.stack(small)[..., None], GREY))


def test_a_stored_set_comes_back_in_slices(tmp_path: Path) -> None:
    stored = ImageSet(
        torch.randn(5, 3, 4, 6, generator=torch.Generator().manual_seed(0)),
        torch.arange(5),
        history=({"stage": "synthesize", "method": "test"},),
    )
    stored.save(tmp_path)
    images = load_images(tmp_path, SPEC)
    assert torch.equal(together(images, 2), stored.images)
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1, 2, 3, 4]
    few = load_images(tmp_path, SPEC, limit=2).image_set()
    assert torch.equal(few.images, stored.images[[0, 2]])
    assert few.targets is not None
    assert few.targets.tolist() == [0, 2]
    assert [entry["stage"] for entry in few.history] == ["synthesize", "images"]


def test_a_limit_is_spread_over_all_classes(tmp_path: Path) -> None:
    class_folders(tmp_path, ["ant", "bee", "cow"])
    labels = load_images(tmp_path, SPEC, limit=3).labels
    assert labels is not None
    assert labels.tolist() == [0, 1, 2]
    assert spread(10, 4).tolist() == [0, 2, 5, 7]
    assert spread(3, 8).tolist() == [0, 1, 2]


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    spec = InputSpec((3, 40, 41), SPEC.mean, SPEC.std)
    peaks = []
    for count in (20, 400):
        path = tmp_path / f"{count}.npz"
        np.savez_compressed(path, images=pixels(count, 40, 41))
        images = load_images(path, spec)
        tracemalloc.start()
        for _ in images.batches(10):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 380 more images are 1.9 MB of bytes.
    assert peaks[1] - peaks[0] < 300_000


class TestBadInput:
    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(ImagesError, match="no such file or folder"):
            load_images(tmp_path / "missing", SPEC)

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        (tmp_path / "empty_class").mkdir()
        with pytest.raises(ImagesError, match=r"no images found.*png"):
            load_images(tmp_path, SPEC)

    def test_a_limit_of_none(self, tmp_path: Path) -> None:
        save(tmp_path / "a.png", pixels(1)[0])
        with pytest.raises(ImagesError, match="at least 1"):
            load_images(tmp_path, SPEC, limit=0)

    def test_photos_beside_class_folders(self, tmp_path: Path) -> None:
        class_folders(tmp_path, ["ant"])
        save(tmp_path / "stray.png", pixels(1)[0])
        with pytest.raises(ImagesError, match=r"stray\.png.*ant/"):
            load_images(tmp_path, SPEC)

    def test_a_file_that_is_no_image_is_named(self, tmp_path: Path) -> None:
        save(tmp_path / "a.png", pixels(1)[0])
        (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no more")
        with pytest.raises(ImagesError, match=r"broken\.jpg.*cannot be read"):
            together(load_images(tmp_path, SPEC))

    def test_one_photo(self, tmp_path: Path) -> None:
        save(tmp_path / "a.png", pixels(1)[0])
        with pytest.raises(ImagesError, match="One photo is no"):
            load_images(tmp_path / "a.png", SPEC)

    def test_photos_for_a_teacher_of_five_channels(self, tmp_path: Path) -> None:
        save(tmp_path / "a.png", pixels(1)[0])
        with pytest.raises(ImagesError, match="takes 5"):
            load_images(tmp_path, InputSpec((5, 4, 6), (0.5,) * 5, (0.2,) * 5))

    def test_npz_channels_that_are_not_the_teachers(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", images=pixels(2))
        with pytest.raises(ImagesError, match="have 3 channels, the teacher takes 1"):
            load_images(tmp_path / "x.npz", GREY)

    def test_npz_labels_of_another_count(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", images=pixels(3), labels=np.arange(2))
        with pytest.raises(ImagesError, match="3 images, but 'labels'"):
            load_images(tmp_path / "x.npz", SPEC)

    def test_npz_of_floats_or_without_images(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", images=pixels(3).astype(np.float32))
        with pytest.raises(ImagesError, match=r"float32.*Expected an .npz with 'images', uint8"):
            load_images(tmp_path / "x.npz", SPEC)
        np.savez(tmp_path / "y.npz", data=pixels(3))
        with pytest.raises(ImagesError, match=r"Expected an .npz"):
            load_images(tmp_path / "y.npz", SPEC)

    def test_an_empty_npz(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", images=pixels(0))
        with pytest.raises(ImagesError, match="is empty"):
            load_images(tmp_path / "x.npz", SPEC)

    def test_a_truncated_npz(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", images=pixels(3))
        data = (tmp_path / "x.npz").read_bytes()
        (tmp_path / "x.npz").write_bytes(data[: len(data) // 2])
        with pytest.raises(ImagesError, match="cannot be read"):
            load_images(tmp_path / "x.npz", SPEC)

    def test_an_array_that_is_shorter_than_its_header_says(self, tmp_path: Path) -> None:
        np.save(tmp_path / "whole.npy", pixels(3))
        data = (tmp_path / "whole.npy").read_bytes()
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            archive.writestr("images.npy", data[:-5])
        with pytest.raises(ImagesError, match="truncated"):
            together(load_images(tmp_path / "x.npz", SPEC))

    def test_a_stored_set_for_another_teacher_or_with_nan(self, tmp_path: Path) -> None:
        ImageSet(torch.zeros(2, 3, 5, 5)).save(tmp_path)
        with pytest.raises(ImagesError, match=r"\(3, 5, 5\).*\(3, 4, 6\)"):
            load_images(tmp_path, SPEC)
        good = ImageSet(torch.zeros(2, 3, 4, 6))
        good.images[1, 0, 0, 0] = float("nan")
        good.save(tmp_path)
        with pytest.raises(ImagesError, match="NaN or infinity"):
            together(load_images(tmp_path, SPEC))

    def test_a_damaged_stored_set(self, tmp_path: Path) -> None:
        ImageSet(torch.zeros(2, 3, 4, 6)).save(tmp_path)
        path = tmp_path / "images.safetensors"
        path.write_bytes(path.read_bytes()[:50])
        with pytest.raises(ImagesError, match="not a readable image set"):
            load_images(tmp_path, SPEC)


def test_where_only_their_number_is_known_some_of_the_classes_are_not_numbered(
    tmp_path: Path,
) -> None:
    for folder in ("drei", "sieben"):
        save(tmp_path / folder / "1.png", pixels(1)[0])
    with pytest.raises(ImagesError, match=r"2 subfolders .* for a teacher with 7 classes. Name"):
        load_images(tmp_path, SPEC, classes=lambda: 7)
    for classes in (2, None):
        labels = load_images(tmp_path, SPEC, classes=lambda n=classes: n).labels
        assert labels is not None
        assert labels.tolist() == [0, 1]


def test_sixteen_bit_grey_keeps_its_shades_whatever_the_file(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 24).astype(np.uint16).reshape(4, 6)
    header = b"P5 6 4 65535\n"
    (tmp_path / "a.pgm").write_bytes(header + ramp.astype(">u2").tobytes())
    Image.fromarray(ramp).save(tmp_path / "b.png")
    Image.fromarray(np.arange(24, dtype=np.int32).reshape(4, 6)).save(tmp_path / "c.tif")
    found = GREY.pixels(together(load_images(tmp_path, GREY)))
    torch.testing.assert_close(found[0], found[1])
    assert found[0].flatten().tolist() == pytest.approx(
        [(value >> 8) / 255 for value in ramp.flatten().tolist()], abs=1e-6
    )
    assert found[2].flatten().tolist() == pytest.approx([v / 255 for v in range(24)], abs=1e-6)


def test_a_photo_is_turned_as_it_says(tmp_path: Path) -> None:
    (row,) = pixels(1)
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(row)))  # 90 degrees counter-clockwise
    exif = turned.getexif()
    exif[0x0112] = 6  # to be shown 90 degrees clockwise
    turned.save(tmp_path / "a.png", exif=exif)
    torch.testing.assert_close(together(load_images(tmp_path, SPEC)), expected(row[None]))


def test_what_is_transparent_lies_on_white(tmp_path: Path) -> None:
    (row,) = pixels(1)
    alpha = np.full((4, 6, 1), 255, dtype=np.uint8)
    alpha[:, :2] = 0
    Image.fromarray(np.concatenate([row, alpha], axis=2)).save(tmp_path / "a.png")
    seen = row.copy()
    seen[:, :2] = 255
    torch.testing.assert_close(together(load_images(tmp_path, SPEC)), expected(seen[None]))


def test_numbers_beyond_sixteen_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 6), 65_536, dtype=np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(ImagesError, match="above 65,535"):
        together(load_images(tmp_path, GREY))


def test_floating_point_photos_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 6), 0.5, dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ImagesError, match="whose white is not known"):
        together(load_images(tmp_path, GREY))
