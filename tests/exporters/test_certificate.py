"""A file in which one number was changed fails, and the message names what."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from changed_files import (
    Change,
    add,
    behind,
    bump,
    nodes,
    of_type,
    own_constant,
    replace_constant,
    times,
    write_changed,
)
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

from emptyset.errors import CertificateError, ImagesError
from emptyset.exporters import certificate as certificate_module
from emptyset.exporters.certificate import certify
from emptyset.exporters.code_comparison import CodeComparison, NodeRecord
from emptyset.exporters.kernels import session
from emptyset.exporters.onnx import export
from emptyset.graph.student import prepare
from emptyset.images.image_set import ImageSet
from emptyset.registry import refiners
from emptyset.teachers.teacher import InputSpec, Teacher


def gemm_alpha(model: ModelProto) -> None:
    (gemm,) = nodes(model, "Gemm")
    for attribute in [a for a in gemm.attribute if a.name == "alpha"]:
        gemm.attribute.remove(attribute)
    gemm.attribute.append(helper.make_attribute("alpha", 1.01))


CHANGES: dict[str, tuple[str, Change]] = {
    "an 8-bit weight code": (
        "weight codes differ",
        lambda m: replace_constant(m, of_type(m, TensorProto.INT8), bump),
    ),
    "a 4-bit weight code": (
        "1 of .* weight codes differ",
        lambda m: replace_constant(m, of_type(m, TensorProto.UINT4), bump),
    ),
    "the zero point of a 4-bit weight": (
        "weight codes differ",
        lambda m: own_constant(m, nodes(m, "Sub")[0], 1, add(1)),
    ),
    "a weight scale": (
        "scale differs",
        lambda m: own_constant(m, behind(m, nodes(m, "Conv")[1], 1), 1, times(1.0000002, 2)),
    ),
    "a weight scale of the last layer": (
        "scale differs",
        lambda m: own_constant(m, behind(m, nodes(m, "Gemm")[0], 1), 1, times(1.0001, 2)),
    ),
    "an activation scale": (
        "scale differs",
        lambda m: own_constant(m, nodes(m, "QuantizeLinear")[1], 1, times(1.0000002)),
    ),
    "an activation scale on the way back": (
        "scale differs|codes differ",
        lambda m: own_constant(m, behind(m, nodes(m, "Conv")[1], 0), 1, times(1.01)),
    ),
    "an activation scale before the last layer": (
        "scale differs|logits differ",
        lambda m: own_constant(m, behind(m, nodes(m, "Gemm")[0], 0), 1, times(1.01)),
    ),
    "an activation zero point": (
        "zero point differs",
        lambda m: own_constant(m, nodes(m, "QuantizeLinear")[0], 2, add(1)),
    ),
    "a bias code": (
        "bias codes differ",
        lambda m: own_constant(m, behind(m, nodes(m, "Conv")[0], 2), 0, add(1, 4)),
    ),
    "a bias code of the last layer": (
        "bias codes differ",
        lambda m: own_constant(m, behind(m, nodes(m, "Gemm")[0], 2), 0, add(1, 4)),
    ),
    "a bias scale": (
        "bias scale differs",
        lambda m: own_constant(m, behind(m, nodes(m, "Conv")[0], 2), 1, times(1.0000002, 1)),
    ),
    "the upper bound of a Clip": (
        r"clipped to 0\.\.14, not to 0\.\.15",
        lambda m: own_constant(m, next(
            n for n in nodes(m, "Clip") if "15" in n.input[2]), 2, add(-1)),
    ),
    "the lower bound of a Clip": (
        r"clipped to \d+\.\.\d+, not to",
        lambda m: own_constant(m, nodes(m, "Clip")[0], 1, add(1)),
    ),
    "the factor of the last product": ("the logits differ", gemm_alpha),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_one_changed_number_fails_and_is_named(
    what: str, small: nn.Module, exported, tmp_path: Path
) -> None:
    student, images, artefact = exported(small, "w4a4")
    expected, change = CHANGES[what]
    write_changed(artefact.path, change, tmp_path / "changed.onnx")
    certificate = certify(tmp_path / "changed.onnx", student, images)
    assert not certificate.holds
    assert certificate.fault is not None
    assert re.search(expected, certificate.fault), certificate.fault
    with pytest.raises(CertificateError, match="Do not ship it"):
        certificate.require()


def test_a_file_of_another_student_fails(small: nn.Module, calibrated, exported) -> None:
    _, images, artefact = exported(small, "w4a4")
    with torch.no_grad():
        small.second.weight[0, 0, 0, 0] += 0.5
    other, _ = calibrated(small, "w4a4")
    assert not certify(artefact.path, other, images).holds


def test_a_truncated_file_is_refused(small: nn.Module, exported) -> None:
    student, images, artefact = exported(small, "w8a8")
    artefact.path.write_bytes(artefact.path.read_bytes()[:-300])
    with pytest.raises(CertificateError, match="ONNX Runtime cannot load this file"):
        certify(artefact.path, student, images)


def test_it_records_what_was_compared(small: nn.Module, exported) -> None:
    student, images, artefact = exported(small, "w4a4")
    heard: list[tuple[int, int]] = []

    class Listener:
        def advance(self, what: str, done: int, total: int, detail: str = "") -> None:
            heard.append((done, total))

    certificate = certify(
        artefact.path, student, images, limit=5, image_source="probes", monitor=Listener()
    )
    stored = json.loads(json.dumps(certificate.to_json()))
    assert stored["holds"] is True
    assert stored["images"] == 5
    assert stored["image_source"] == "probes"
    assert stored["batch_sizes"] == [1, 5]
    assert stored["environment"]["opset"] == 21
    assert heard == [(5, 5)]
    # Every quantizer of the simulation was seen; the image's has one code per pixel.
    assert stored["nodes"][0]["values"] == 5 * 3 * 8 * 10
    activations = [q for q in student.quantizers.values() if q.axis is None]
    assert len(stored["nodes"]) >= len(activations)
    assert certificate.require() is certificate


def test_one_image_is_too_few(small: nn.Module, exported) -> None:
    student, _, artefact = exported(small, "w8a8")
    with pytest.raises(ImagesError, match=r"at least 2 images\. Got 1"):
        certify(artefact.path, student, ImageSet(torch.zeros(1, 3, 8, 10)))


@pytest.mark.parametrize("limit", [-3, 0, 1])
def test_a_limit_that_leaves_nothing_to_compare_is_refused(
    limit: int, small: nn.Module, exported
) -> None:
    student, images, artefact = exported(small, "w8a8")
    with pytest.raises(ImagesError, match=rf"limit.* at least 2 images\. Got {limit}"):
        certify(artefact.path, student, images, limit=limit)


def test_a_file_whose_codes_cannot_be_seen_does_not_pass(
    small: nn.Module, exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, images, artefact = exported(small, "w8a8")
    monkeypatch.setattr(certificate_module, "CodeComparison", Blind)
    certificate = certify(artefact.path, student, images)
    assert certificate.fault == "no codes were compared"


class Blind(CodeComparison):
    """Sees the logits and no quantizer."""

    def records(self) -> list[NodeRecord]:
        return []


def moved_by_batch(path: Path, steps: float, changed: Path) -> None:
    """Write the file with its images moved up where one comes alone and down elsewhere.

    Args:
        path: The file.
        steps: How far [steps of the images' quantizer].
        changed: Where to write.
    """
    model = onnx.load(path)
    quantize = next(n for n in model.graph.node if n.input[0] == "images")
    held = {c.name: numpy_helper.to_array(c) for c in model.graph.initializer}
    far = np.float32(steps * held[quantize.input[1]])
    constants = {"one": np.array([1], np.int64), "up": far, "down": -far}
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
    quantize.input[0] = "moved"
    for node in reversed(
        [
            helper.make_node("Shape", ["images"], ["count"], start=0, end=1),
            helper.make_node("Equal", ["count", "one"], ["alone"]),
            helper.make_node("Where", ["alone", "up", "down"], ["by"]),
            helper.make_node("Add", ["images", "by"], ["moved"]),
        ]
    ):
        model.graph.node.insert(0, node)
    onnx.save(model, changed)


class OneLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 8 * 10, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(1))


def test_a_tie_that_falls_otherwise_in_another_batch_is_a_tie(exported, tmp_path: Path) -> None:
    """The pixel lies between two codes: alone it becomes the upper one, in company the lower."""
    student, images, artefact = exported(OneLinear())
    quantizer = student.quantizers["input"]
    given = images.images.clone()
    with torch.no_grad():
        given = (given / quantizer.scale).round() * quantizer.scale
        given[0, 1, 4, 7] = 20.5 * quantizer.scale
    moved_by_batch(artefact.path, 1e-4, tmp_path / "changed.onnx")
    running = session(tmp_path / "changed.onnx")
    alone, together = (running.run(None, {"images": given[:n].numpy()})[0][0] for n in (1, 2))
    assert not np.allclose(alone, together, atol=1e-4 * np.abs(together).max())
    certificate = certify(tmp_path / "changed.onnx", student, ImageSet(given))
    assert certificate.holds, certificate.fault


def test_an_image_that_depends_on_its_batch_is_no_tie(exported, tmp_path: Path) -> None:
    student, images, artefact = exported(OneLinear())
    quantizer = student.quantizers["input"]
    # Far from every boundary in company, over the next one alone.
    given = (images.images / quantizer.scale).round() * quantizer.scale + 0.35 * quantizer.scale
    moved_by_batch(artefact.path, 0.3, tmp_path / "changed.onnx")
    fault = certify(tmp_path / "changed.onnx", student, ImageSet(given)).fault
    assert fault is not None
    assert re.match(r"one image by itself: .* of 240 codes differ by up to 1 ", fault), fault


def test_a_file_of_a_fixed_batch_is_named(small: nn.Module, exported, tmp_path: Path) -> None:
    student, images, artefact = exported(small, "w8a8")
    model = onnx.load(artefact.path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = len(images)
    onnx.save(model, tmp_path / "fixed.onnx")
    fault = certify(tmp_path / "fixed.onnx", student, images).fault
    assert fault is not None
    assert fault.startswith("the file does not take an image by itself: ")


def test_latency_is_measured_in_turn(small: nn.Module, calibrated, tmp_path: Path) -> None:
    from emptyset.exporters.latency import compare
    from emptyset.exporters.onnx import export

    student, images = calibrated(small, "w8a8")
    export(student, tmp_path / "model.onnx", float_path=tmp_path / "float.onnx")
    found = compare(tmp_path / "model.onnx", tmp_path / "float.onnx", images.images, rounds=3)
    assert 0 < found.float_ms < 1000
    assert 0 < found.quantized_ms < 1000
    assert found.ratio == pytest.approx(found.float_ms / found.quantized_ms)
    assert (found.batch, found.rounds) == (7, 3)


def test_pixels_of_eight_bits_may_all_lie_on_boundaries(small: nn.Module, tmp_path: Path) -> None:
    """With mean and deviation 0.5 a pixel p becomes 2 p / 255 - 1, and its code p + 0.5."""
    spec = InputSpec((3, 8, 10), (0.5,) * 3, (0.5,) * 3)
    student = prepare(Teacher("test", small.requires_grad_(False).eval(), spec), "w8a8")
    pixels = torch.randint(256, (12, 3, 8, 10), generator=torch.Generator().manual_seed(0))
    images = ImageSet(spec.normalise(pixels / 255))
    calibrate = refiners.get("calibrate")
    calibrate.make(calibrate.config()).refine(student, images)
    artefact = export(student, tmp_path / "model.onnx")
    certificate = certify(artefact.path, student, images)
    assert certificate.holds, certificate.fault
    # Else this test would prove nothing.
    assert certificate.ties > 100
