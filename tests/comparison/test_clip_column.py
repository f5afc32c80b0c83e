"""`emptyset compare --clip`: one encoder judges every row, and the table has its two columns."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stored_arrays import arrays_of
from torch import Tensor
from typer.testing import CliRunner

from emptyset.cli.app import app
from emptyset.evaluate.clip_similarity import ClipEncoder
from emptyset.images.image_set import ImageSet
from emptyset.teachers.embedded import card, held_out_images_path

DIGITS = "embedded:digits-resnet"


class Halves(ClipEncoder):
    """Brightness of the left and of the right half stands for the image."""

    def __init__(self, name: str) -> None:
        self.name = name

    def embeddings(self, pixels_NCHW: Tensor) -> Tensor:
        left, right = pixels_NCHW.chunk(2, dim=3)
        return torch.stack([left.mean((1, 2, 3)), right.mean((1, 2, 3))], dim=1)


def pairwise(vectors: np.ndarray) -> float:
    """Mean cosine over all pairs, by the scalar formula."""
    cosines = [a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in combinations(vectors, 2)]
    return float(np.mean(cosines))


def test_every_row_has_the_similarity_that_the_named_clip_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[str, str]] = []

    def load(name: str, *, device: Any = "cpu") -> ClipEncoder:
        loaded.append((name, str(device)))
        return Halves(name)

    monkeypatch.setattr(ClipEncoder, "load", staticmethod(load))
    data = arrays_of(held_out_images_path())
    np.savez(tmp_path / "s.npz", images=data["images"][:30], labels=data["labels"][:30])
    out = tmp_path / "c"
    arguments = [
        "compare", DIGITS, "--methods", "noise,dffg", "--count", "12", "--image-iterations", "100",
        "--set", "methods.dffg.snapshots=2", "--labelled", tmp_path / "s.npz", "--device", "cpu",
        "--clip", "a/clip", "--out", out, "-q",
    ]  # fmt: skip
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert loaded == [("a/clip", "cpu")]
    table = json.loads((out / "compare.json").read_text(encoding="utf-8"))
    spec = card("digits-resnet")["input"]
    seen = {}
    for row in table["rows"]:
        images = ImageSet.load(out / "rows" / row["name"] / "images")
        mean, std = (np.reshape(spec[key], (1, -1, 1, 1)) for key in ("mean", "std"))
        pixels = np.clip(images.images.double().numpy() * std + mean, 0, 1)
        width = pixels.shape[3] // 2
        halves = [pixels[..., :width].mean((1, 2, 3)), pixels[..., width:].mean((1, 2, 3))]
        found = row["quality"]["clip"]
        assert found["similarity"] == pytest.approx(pairwise(np.stack(halves, 1)), abs=1e-5)
        assert (found["count"], found["model"]) == (12, "a/clip")
        seen[row["name"]] = found
    assert seen["noise"]["similarity_within_class"] is None
    assert seen["noise"]["similarity"] != seen["dffg"]["similarity"]
    head, _, *rows = [
        line
        for line in (out / "compare.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    column = [cell.strip() for cell in head.split("|")].index("CLIP")
    cells = {line.split("|")[1].strip(): line.split("|")[column].strip() for line in rows}
    for name, found in seen.items():
        assert float(cells[name]) == pytest.approx(found["similarity"], abs=5e-4)
    # Without it nothing of CLIP is in the table; the row's images are those that are there.
    arguments = [word for word in arguments if word not in ("--clip", "a/clip")]
    result = CliRunner().invoke(app, [*map(str, arguments), "--overwrite"])
    assert result.exit_code == 0, result.output
    assert len(loaded) == 1
    assert "CLIP" not in (out / "compare.md").read_text(encoding="utf-8")
