"""Pictures and table of a generator: only what was measured, in files and on the page."""

import base64
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from emptyset.errors import MissingExtraError
from emptyset.evaluate.pictured_samples import (
    ClassPath,
    FeatureMap,
    GeneratorPictures,
    Grid,
    Points,
)
from emptyset.report.generator_figures import Figure, generator_figures, write_figures
from emptyset.report.generator_section import (
    boundary_note,
    boundary_rows,
    generator_section,
    write_generator_page,
)

FOUND: dict[str, Any] = {
    "superposed": {
        "ratio": 1.571, "ratio_spread": 0.25, "intrusion": 0.00013, "intrusion_spread": 0.0002,
    },
    "mixup": {"ratio": 2.44, "ratio_spread": None, "intrusion": 0.8, "intrusion_spread": None},
    "pairs": 45, "of_pairs": 4950, "without_distance": 0, "steps": 100, "noise": "zero",
    "draws": 1, "features": "penultimate", "seed": 0,
}  # fmt: skip


def points(count: int, classes: list[int], seed: int) -> Points:
    drawn = torch.Generator().manual_seed(seed)
    return Points(torch.randn(count, 2, generator=drawn), torch.tensor(classes))


def drawn_pictures() -> GeneratorPictures:
    tiles = torch.randint(0, 256, (2, 4, 3, 5, 6), generator=torch.Generator().manual_seed(0))
    line = torch.stack([torch.arange(21.0), torch.arange(21.0) ** 2], dim=1)
    way = torch.randint(0, 256, (2, 11, 3, 5, 6), generator=torch.Generator().manual_seed(1))
    return GeneratorPictures(
        method="qimera",
        features="penultimate",
        grid=Grid(tiles.byte(), torch.tensor([0, 3])),
        feature_map=FeatureMap(
            generated=points(6, [0, 0, 0, 3, 3, 3], 1),
            superposed=points(4, [-1] * 4, 2),
            real=points(5, [0, 3, 0, 3, 0], 3),
            basis="real",
            explained=(0.5, 0.25),
        ),
        class_path=ClassPath(
            (0, 3), line, line * 2, points(4, [0, 3, 0, 3], 4), "real", (0.6, 0.2), way.byte()
        ),
        class_names={0: "ant & bee"},
        missing=("Something: there is none.",),
    )


@pytest.fixture(scope="module")
def whole() -> list[Figure]:
    """Everything, drawn once."""
    return generator_figures(drawn_pictures())


def opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))


def test_every_picture_that_can_be_drawn_is_a_readable_file(
    tmp_path: Path, whole: list[Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emptyset.report.generator_figures.generator_figures", lambda _: whole)
    paths = write_figures(tmp_path / "new", drawn_pictures())
    names = ["feature_map.png", "class_path.png", "class_path_images.png", "images.png"]
    assert [path.name for path in paths] == names
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(names)
    for path in paths:
        with Image.open(path) as picture:
            assert min(picture.size) > 40
            pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
        assert len(np.unique(pixels, axis=0)) > 10


def test_nothing_is_drawn_without_its_data(whole: list[Figure]) -> None:
    pictures = drawn_pictures()
    less = replace(pictures, feature_map=None, class_path=None)
    assert [figure.name for figure in generator_figures(less)] == ["images"]
    assert pictures.feature_map is not None
    alone = replace(pictures.feature_map, superposed=None, real=None, predicted=True)
    (first, *_) = generator_figures(replace(less, feature_map=alone))
    # One panel instead of three, and no word of what is not there.
    three = opened(whole[0].png).size[0]
    assert opened(first.png).size[0] * 3 == pytest.approx(three, abs=3)
    assert "what the teacher says" in first.caption
    assert "Black dots" not in first.caption


def test_the_map_has_a_dot_where_the_sample_is() -> None:
    far = Points(torch.tensor([[0.0, 0.0], [10.0, 10.0]]), torch.tensor([0, 3]))
    shown = FeatureMap(far, None, None, "generated", (0.5, 0.25))
    only = replace(drawn_pictures(), feature_map=shown, class_path=None)
    png = generator_figures(only)[0].png
    pixels = np.asarray(opened(png).convert("RGB")).astype(int)
    blue = (pixels[..., 2] - pixels[..., 0]) > 60
    height, width = blue.shape
    # Class 0 is tab10's first colour, blue, and lies in the lower left; the legend is below.
    rows, columns = np.nonzero(blue[: int(0.85 * height)])
    assert len(rows) > 0
    assert rows.min() > height / 2
    assert columns.max() < width / 2


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_tiles_keep_their_places_and_their_pixels(channels: int) -> None:
    tiles = torch.zeros(2, 3, channels, 4, 4, dtype=torch.uint8)
    tiles[1, 2, 0] = 255
    grid = Grid(tiles, torch.tensor([-1, -1]))
    less = replace(drawn_pictures(), feature_map=None, class_path=None, grid=grid)
    pixels = np.asarray(opened(generator_figures(less)[0].png).convert("RGB")).astype(int)
    dark = pixels.sum(axis=2) < 60
    rows, columns = np.nonzero(dark)
    top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
    inside = pixels[top : bottom + 1, left:]
    height = bottom - top + 1
    # The last of the second row is bright, its neighbours are not.
    assert inside[int(0.75 * height), int(0.5 * (right - left))].sum() < 60
    last = inside[int(0.75 * height), int(0.8 * (right - left))]
    assert last[0] > 200
    assert bool(last[1] > 200) is (channels != 3)


def test_equal_data_give_equal_files(whole: list[Figure]) -> None:
    assert [one.png for one in generator_figures(drawn_pictures())] == [one.png for one in whole]


def test_the_table_tells_ratio_and_intrusion_of_both_ways() -> None:
    rows = boundary_rows(FOUND)
    assert [row.name for row in rows] == [
        "superposed embeddings", "Mixup of the two images at the ends",
    ]  # fmt: skip
    assert (rows[0].ratio, rows[0].intrusion) == ("1.571 ± 0.2", "0.00013 ± 0.0002")
    assert (rows[1].ratio, rows[1].intrusion) == ("2.44", "0.8")


def test_the_note_says_what_was_measured() -> None:
    assert "45 of 4,950 pairs" in boundary_note(FOUND)
    assert "100 steps of λ, without noise" in boundary_note(FOUND)
    other = FOUND | {"noise": "drawn", "draws": 3, "features": "logits", "without_distance": 2}
    note = boundary_note(other)
    assert "3 drawn for each pair" in note
    assert "in the teacher's logits" in note
    assert "Both ends of 2 pairs look the same" in note


def test_the_page_is_one_file_with_table_pictures_and_what_is_missing(tmp_path: Path) -> None:
    result = {
        "path": "runs/a<b>/generator.safetensors", "method": "qimera", "emptyset": "0",
        "teacher": {"name": "embedded:x", "weights_hash": "cd" * 32}, "real_path": "photos",
        "real_count": 1234, "class_boundary": FOUND,
    }  # fmt: skip
    write_generator_page(tmp_path / "page.html", result, drawn_pictures())
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "a&lt;b&gt;" in page
    assert "1,234 real ones of photos" in page
    for text in ("1.571 ± 0.2", "0.00013", "Something: there is none.", "ant &amp; bee"):
        assert text in page, text
    assert "class 3" in page
    found = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)
    assert [opened(base64.b64decode(text)).format for text in found] == ["PNG"] * 4


def test_a_section_without_a_table_has_pictures_alone() -> None:
    less = replace(drawn_pictures(), feature_map=None, class_path=None)
    section = generator_section(None, less)
    assert (section["rows"], section["note"]) == ([], "")
    assert len(section["figures"]) == 1
    assert generator_section(FOUND, None)["figures"] == []


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"emptyset\[report\]"):
        generator_figures(drawn_pictures())
