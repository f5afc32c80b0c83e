"""The page: one file, no network, the same words as the terminal."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from emptyset.errors import RunFolderError
from emptyset.images.image_set import ImageSet
from emptyset.report.contact_sheet import contact_sheet
from emptyset.report.facts import headline, percent, result_rows, size
from emptyset.report.guard import judge
from emptyset.report.layer_table import LayerRow, divergence
from emptyset.report.page import write_page
from emptyset.report.png import data_address, png_bytes
from emptyset.teachers.teacher import InputSpec


def row(name: str, damage: float, weight_bits: int = 4, activation_bits: int = 4) -> LayerRow:
    return LayerRow(
        name, "conv2d", weight_bits, activation_bits, (-1.0, 1.0), None, 20.0, None, damage, 0.25
    )


@pytest.fixture
def metrics() -> dict[str, Any]:
    layers = [row("first", 0.5), row("a<b>", 0.001)]
    return {
        "emptyset": "0", "command": "emptyset quantize x --set 'a=<b>'", "recipe": {},
        "recipe_hash": "ab" * 32,
        "teacher": {
            "name": "embedded:x", "weights_hash": "cd" * 32, "classes": 10, "provenance": {},
            "input": {"shape": [3, 6, 5], "mean": [0.5] * 3, "std": [0.25] * 3},
        },
        "plan": {
            "name": "integer", "bits": "w4a4", "batch_norm": "fold", "layers": 2,
            "float_inputs": [],
        },
        "images": {
            "source": "zeroq", "made": True, "count": 3,
            "history": [{"stage": "synthesize", "method": "zeroq", "seed": 7}],
        },
        "evaluation": {
            "on": "other images", "count": 50, "labelled": False, "teacher": None,
            "quantized": None, "made": False, "doubt": None,
            "agreement": {"share": 0.9, "low": 0.85, "high": 0.95, "kl": 0.1, "count": 50},
        },
        "guard": judge(0.5, layers).to_json(),
        "simulated_agreement": {"share": 0.91, "count": 50},
        "layers": [one.to_json() for one in layers], "layer_images": 4,
        "file": {
            "bytes": 1000, "float_bytes": 4000, "ratio": 0.25, "integer_share": 0.5,
            "operators": {"QLinearConv": 3},
            "fallbacks": [{"node": "n1", "operator": "Conv", "why": "its output is float"}],
            "notes": ["2-bit weights are stored as int4"],
        },
        "latency": {"batch": 1, "float_ms": 2.0, "quantized_ms": 1.0, "ratio": 2.0},
        "certificate": {"holds": True, "summary": "holds: 3 tensors", "nodes": [{"a": 1}]},
        "seconds": {"images": 1.0},
    }  # fmt: skip


def written(folder: Path, metrics: dict[str, Any]) -> str:
    images = ImageSet(torch.zeros(3, 3, 6, 5))
    spec = InputSpec((3, 6, 5), (0.5,) * 3, (0.25,) * 3)
    write_page(folder / "report.html", metrics, contact_sheet(images, spec))
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_loads_nothing_from_anywhere(tmp_path: Path, metrics: dict[str, Any]) -> None:
    page = written(tmp_path, metrics)
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "@import" not in page
    assert "<script" not in page
    assert page.count("data:image/png;base64,") == 3
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_the_page_tells_everything(tmp_path: Path, metrics: dict[str, Any]) -> None:
    page = written(tmp_path, metrics)
    for text in [
        "90.00 %", "0.25 of float", "2.00 × as fast", "holds: 3 tensors", "its output is float",
        "2-bit weights are stored as int4", "QLinearConv", "No labelled photos were given",
        "<dt>seed</dt><dd>7</dd>", "only 50.00 % of the images", "plan.overrides.first=w8a8",
        "stored", "computed",
    ]:  # fmt: skip
        assert text in page, text


def test_the_page_tells_how_good_the_images_are(tmp_path: Path, metrics: dict[str, Any]) -> None:
    assert "BatchNorm distance" not in written(tmp_path, metrics)
    measured = {
        "count": 4, "clip": None, "distance": None,
        "diversity": {"similarity": 0.1234, "class_agreement": 0.75},
    }  # fmt: skip
    metrics["image_quality"] = {"images": measured, "real": None}
    page = written(tmp_path, metrics)
    assert re.search(r'<th class="n">zeroq</th><th></th>', page)
    assert "0.123" in page
    assert "75.00 %" in page
    metrics["image_quality"]["real"] = measured
    assert '<th class="n">zeroq</th><th class="n">real</th>' in written(tmp_path, metrics)


def test_a_folder_is_no_name_of_a_page(tmp_path: Path, metrics: dict[str, Any]) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(RunFolderError, match="there is a folder of this name"):
        written(tmp_path, metrics)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_names_are_escaped(tmp_path: Path, metrics: dict[str, Any]) -> None:
    page = written(tmp_path, metrics)
    assert "a&lt;b&gt;" in page
    assert "a<b>" not in page


def test_noise_stands_in_the_head(tmp_path: Path, metrics: dict[str, Any]) -> None:
    metrics["images"]["source"] = "noise"
    page = written(tmp_path, metrics)
    assert "NOISE" in page[: page.index("</header>")]
    assert "NOISE" in headline(metrics)


def test_the_rows_tell_labelled_results_first(metrics: dict[str, Any]) -> None:
    names = [one.name for one in result_rows(metrics)]
    assert names[0] == "agreement with the teacher"
    metrics["evaluation"]["teacher"] = {"top1": 0.9, "top5": 1.0}
    metrics["evaluation"]["quantized"] = {"top1": 0.89, "top5": 1.0}
    rows = result_rows(metrics)
    assert (rows[0].name, rows[0].before, rows[0].after) == ("top-1", "90.00 %", "89.00 %")
    assert rows[0].remark == "50 labelled images: other images"
    metrics["certificate"]["holds"] = False
    assert result_rows(metrics)[-1].after == "FAILS"


def test_the_page_of_a_run_before_there_were_doubts_is_written_again(
    tmp_path: Path, metrics: dict[str, Any]
) -> None:
    new = written(tmp_path / "new", metrics)
    for name in ("made", "doubt"):
        del metrics["evaluation"][name]
    assert written(tmp_path / "old", metrics) == new


def test_a_doubt_stands_beside_the_result(tmp_path: Path, metrics: dict[str, Any]) -> None:
    assert "says nothing here" not in written(tmp_path, metrics)
    metrics["evaluation"]["doubt"] = "the float network guesses."
    assert "Accuracy says nothing here:</b> the float network guesses." in written(
        tmp_path, metrics
    )


def test_classes_that_images_were_made_for_are_not_called_accuracy(
    tmp_path: Path, metrics: dict[str, Any]
) -> None:
    metrics["evaluation"] |= {
        "labelled": True, "made": True, "teacher": {"top1": 0.9, "top5": 1.0},
        "quantized": {"top1": 0.89, "top5": 1.0},
    }  # fmt: skip
    remark = result_rows(metrics)[0].remark
    assert "labelled" not in remark
    assert "50 images were made for" in remark
    assert "No labelled photos were given" in written(tmp_path, metrics)


@pytest.mark.parametrize(("bits", "stored"), [("w4a4", 4), ("w2a8", 4), ("w6a8", 8)])
def test_how_weights_are_stored_is_told_without_measured_layers_too(
    bits: str, stored: int, metrics: dict[str, Any]
) -> None:
    metrics = metrics | {"layers": [], "plan": metrics["plan"] | {"bits": bits}}
    (row,) = [row for row in result_rows(metrics) if "stored in" in row.remark]
    assert f"weights are stored in {stored} bits" in row.remark


def test_a_page_is_written_into_a_folder_that_is_not_there_yet(
    tmp_path: Path, metrics: dict[str, Any]
) -> None:
    written(tmp_path / "new", metrics)
    assert (tmp_path / "new" / "report.html").is_file()


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "–"), (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_500_000, "2.5 MB"),
     (3_210_000_000, "3.21 GB")],
)  # fmt: skip
def test_sizes_are_readable(count: int | None, text: str) -> None:
    assert size(count) == text


def test_shares_are_readable() -> None:
    assert (percent(None), percent(0.99123), percent(1.0)) == ("–", "99.12 %", "100.00 %")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_reads_back_with_another_library(channels: int) -> None:
    codes = torch.randint(0, 256, (channels, 5, 7), generator=torch.Generator().manual_seed(0))
    read = np.asarray(Image.open(io.BytesIO(png_bytes(codes / 255))))
    expected = codes[0].numpy() if channels == 1 else codes.permute(1, 2, 0).numpy()
    assert np.array_equal(read, expected)


def test_a_picture_with_other_channels_shows_the_first() -> None:
    address = data_address(torch.full((4, 2, 3), 0.5))
    picture = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    assert (picture.mode, picture.size) == ("L", (3, 2))


class TestGuard:
    def test_is_silent_when_nothing_is_wrong(self) -> None:
        verdict = judge(0.97, [row("a", 0.1)])
        assert not verdict.collapsed
        assert verdict.guilty == ()

    def test_names_the_layers_that_carry_most_of_the_damage(self) -> None:
        rows = [row("small", 0.01), row("large", 0.6), row("middle", 0.3), row("none", 0.0)]
        verdict = judge(0.3, rows)
        # 0.6 of 0.91 is less than 80 %, 0.9 of it is more.
        assert verdict.guilty == ("large", "middle")
        assert verdict.proposal[0] == (
            "--set plan.overrides.large=w8a8 --set plan.overrides.middle=w8a8"
        )
        assert "--bits w4a8" in verdict.proposal
        assert "large, middle" in verdict.message()

    def test_speaks_below_the_limit_of_the_user(self) -> None:
        assert judge(0.97, [row("a", 0.1)], least=0.99).collapsed

    def test_proposes_at_least_four_bits_for_weights_and_eight_for_activations(self) -> None:
        assert judge(0.3, [row("a", 0.1, 2, 4)]).proposal[-1] == "--bits w4a8"
        assert judge(0.3, [row("a", 0.1, 3, 8)]).proposal[-1] == "--bits w4a8"
        assert judge(0.3, [row("a", 0.1, 4, 8)]).proposal[-1] == "--bits w8a8"

    def test_proposes_images_where_more_bits_cannot_help(self) -> None:
        verdict = judge(0.3, [row("a", 0.1, weight_bits=8, activation_bits=8)])
        assert verdict.proposal == ("--images DIR with a few real images",)


def test_divergence_equals_the_sum_over_classes() -> None:
    drawn = torch.Generator().manual_seed(0)
    teacher = torch.randn(3, 5, generator=drawn, dtype=torch.double)
    student = torch.randn(3, 5, generator=drawn, dtype=torch.double)
    expected = 0.0
    for one, other in zip(teacher.softmax(1).tolist(), student.softmax(1).tolist(), strict=True):
        expected += sum(p * np.log(p / q) for p, q in zip(one, other, strict=True)) / 3
    assert divergence(teacher, student) == pytest.approx(expected, rel=1e-12)
    assert divergence(teacher, teacher + 4.0) == pytest.approx(0.0, abs=1e-15)


def test_the_layer_table_measures_each_layer_alone_and_leaves_no_hook() -> None:
    import emptyset
    from emptyset.images.image_set import Batch
    from emptyset.report.layer_table import layer_table

    teacher = emptyset.load("embedded:digits-resnet")
    images = emptyset.synthesize(teacher, "zeroq", count=5, steps=2)
    student = emptyset.prepare(teacher, "w3a4")
    emptyset.refine(student, images, "calibrate")
    rows = layer_table(student, [Batch(images.images, None)])
    assert [one.name for one in rows] == [layer.name for layer in student.layers()]
    # By another route: quantize one layer's weight and its input by hand.
    layer = student.layers()[2]
    weight = student.weight_of(layer).detach().double()
    quantizer = student.quantizers[layer.weight_quantizer or ""]
    rounded = quantizer.quantize(weight.float()).detach().double()
    noise = float(((rounded - weight) ** 2).sum())
    expected = 10 * np.log10(float((weight**2).sum()) / noise)
    assert rows[2].weight_sqnr == pytest.approx(expected, rel=1e-6)
    with torch.no_grad():
        with student.float_mode():
            teacher_logits = student(images.images)
        with student.only_layer(layer.name):
            alone = student(images.images)
    assert rows[2].damage == pytest.approx(divergence(teacher_logits, alone), rel=1e-9)
    assert not any(q._forward_hooks for q in student.quantizers.values())
