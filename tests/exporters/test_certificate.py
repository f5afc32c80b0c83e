"""A file in which one number was changed fails, and the message names what."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from emptyset.errors import CertificateError, ImagesError
from emptyset.exporters.certificate import certify
from emptyset.images.image_set import ImageSet

Change = Callable[[ModelProto], None]


def replace_constant(model: ModelProto, name: str, change: Callable[[np.ndarray], None]) -> None:
    held = next(c for c in model.graph.initializer if c.name == name)
    values = numpy_helper.to_array(held).copy()
    change(values)
    new = helper.make_tensor(name, held.data_type, held.dims, values.flatten().tolist())
    held.CopyFrom(new)


def own_constant(model: ModelProto, node: NodeProto, position: int, change: Change) -> None:
    """Change what this node alone reads."""
    held = next(c for c in model.graph.initializer if c.name == node.input[position])
    copied = TensorProto()
    copied.CopyFrom(held)
    copied.name = f"{held.name}_other"
    model.graph.initializer.append(copied)
    node.input[position] = copied.name
    replace_constant(model, copied.name, change)


def add(amount: float, index: int = 0) -> Callable[[np.ndarray], None]:
    def change(values: np.ndarray) -> None:
        flat = values.reshape(-1)
        flat[index] = flat[index] + np.asarray(amount).astype(flat.dtype)

    return change


def times(factor: float, index: int = 0) -> Callable[[np.ndarray], None]:
    def change(values: np.ndarray) -> None:
        values.reshape(-1)[index] *= np.float32(factor)

    return change


def nodes(model: ModelProto, kind: str) -> list[NodeProto]:
    return [n for n in model.graph.node if n.op_type == kind]


def behind(model: ModelProto, layer: NodeProto, position: int) -> NodeProto:
    return next(n for n in model.graph.node if n.output[0] == layer.input[position])


def of_type(model: ModelProto, *kinds: int) -> str:
    return next(
        c.name for c in model.graph.initializer if c.data_type in kinds and len(c.dims) == 4
    )


def bump(values: np.ndarray) -> None:
    flat = values.reshape(-1)
    flat[3] = flat[3] - 1 if flat[3] > 0 else flat[3] + 1


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
    model = onnx.load(artefact.path)
    change(model)
    onnx.save(model, tmp_path / "changed.onnx")
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
    assert stored["batch_sizes"] == [2, 5]
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
