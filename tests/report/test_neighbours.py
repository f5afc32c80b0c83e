"""Rows and pairs of the nearest real images."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from emptyset.evaluate.nearest_neighbours import ClosestPairs, NearestNeighbours, Neighbours
from emptyset.images.image_set import ImageSet
from emptyset.report.contact_sheet import contact_sheet
from emptyset.report.images_page import write_quality_page
from emptyset.report.neighbours import nearest_pairs, neighbour_rows
from emptyset.teachers.teacher import InputSpec


def found() -> NearestNeighbours:
    tiles = torch.randint(0, 256, (4, 3, 5, 6), generator=torch.Generator().manual_seed(0)).byte()
    closest = ClosestPairs(
        torch.tensor([0.125, 0.5]), torch.tensor([7, 3]), torch.tensor([40, 11]),
        tiles[:2], tiles[2:],
    )  # fmt: skip
    space = Neighbours(
        tuple(n / 10 for n in range(7)), tuple(n / 5 for n in range(7)), 0.2, 0.0625, closest
    )
    return NearestNeighbours(9, 12, space, space, (5, 6), "penultimate")


def test_rows_stand_side_by_side_in_both_spaces() -> None:
    rows = neighbour_rows(found().to_json())
    assert len(rows) == 16
    names = [row.name for row in rows[:8]]
    assert names[0] == "pixels, nearest"
    assert names[1:4] == ["pixels, 1 %", "pixels, 5 %", "pixels, 25 %"]
    assert (rows[1].made, rows[1].real) == ("0.1", "0.2")
    assert (rows[7].name, rows[7].made, rows[7].real) == ("pixels, closer", "6.25 %", "about 1 %")
    assert rows[8].name == "features, nearest"
    assert "features" in rows[8].remark


def test_pairs_show_the_made_image_and_the_real_one() -> None:
    pairs = nearest_pairs(found())["features"]
    assert [pair.caption for pair in pairs] == [
        "image 7, real 40: 0.125", "image 3, real 11: 0.5",
    ]  # fmt: skip
    closest = found().features.closest
    for pair, tile, real in zip(pairs, closest.tiles, closest.real_tiles, strict=True):
        for address, expected in ((pair.image, tile), (pair.real, real)):
            read = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))
            assert np.array_equal(read, expected.permute(1, 2, 0).numpy())


def test_the_page_of_images_shows_them_where_there_are_real_ones(tmp_path: Path) -> None:
    spec = InputSpec((3, 6, 5), (0.5,) * 3, (0.25,) * 3)
    sheet = contact_sheet(ImageSet(torch.zeros(3, 3, 6, 5)), spec)
    quality = {"count": 3, "distance": None, "diversity": {"similarity": 0.5}}
    result = {
        "path": "made", "real_path": "photos", "emptyset": "0", "images": quality, "real": quality,
        "teacher": {"name": "x", "weights_hash": "ab" * 32},
    }  # fmt: skip
    pages = []
    for nearest in (None, found()):
        write_quality_page(tmp_path / "p.html", result, sheet, nearest)
        pages.append((tmp_path / "p.html").read_text(encoding="utf-8"))
    assert "Nearest" not in pages[0]
    assert "Nearest pairs, by features" in pages[1]
    assert "image 7, real 40: 0.125" in pages[1]
    assert "compared at\n5 × 6" in pages[1]
    assert len(re.findall("data:image/png", pages[1])) == len(re.findall("data:", pages[0])) + 8
