"""A file that holds a number in another form, or another number of little effect, fails too."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from changed_files import (
    Change,
    Values,
    add,
    behind,
    nodes,
    own_constant,
    producer,
    replace_constant,
    write_changed,
)
from onnx import ModelProto, NodeProto, helper, numpy_helper
from torch import Tensor, nn

from emptyset.exporters import certificate as certificate_module
from emptyset.exporters.certificate import certify
from emptyset.exporters.code_comparison import CodeComparison
from emptyset.exporters.kernels import session
from emptyset.images.image_set import ImageSet


def array(model: ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(c for c in model.graph.initializer if c.name == name))


def read_float(model: ModelProto, node: NodeProto, position: int, values: np.ndarray) -> None:
    """Let this node read these numbers instead of what is dequantized."""
    model.graph.initializer.append(numpy_helper.from_array(values, "in_float"))
    node.input[position] = "in_float"


def next_bit(index: int) -> Values:
    def change(values: np.ndarray) -> None:
        flat = values.reshape(-1)
        flat[index] = np.nextafter(flat[index], np.float32(9))

    return change


def float_bias(model: ModelProto) -> None:
    conv = nodes(model, "Conv")[0]
    codes, step = (array(model, name) for name in behind(model, conv, 2).input[:2])
    read_float(model, conv, 2, codes.astype(np.float32) * step)


def float_weight(model: ModelProto) -> None:
    conv = nodes(model, "Conv")[1]
    dequantize = behind(model, conv, 1)
    codes, scale = (array(model, name) for name in dequantize.input[:2])
    read_float(model, conv, 1, codes.astype(np.float32) * scale[:, None, None, None])
    model.graph.node.remove(dequantize)


def computed_weight(model: ModelProto) -> None:
    dequantize = behind(model, nodes(model, "Conv")[1], 1)
    same = helper.make_node("Identity", [dequantize.input[0]], ["same_codes"])
    model.graph.node.insert(list(model.graph.node).index(dequantize), same)
    dequantize.input[0] = "same_codes"


def times_logits(factor: float) -> Change:
    def change(model: ModelProto) -> None:
        name = model.graph.output[0].name
        last = producer(model, name)
        last.output[list(last.output).index(name)] = "before"
        product = helper.make_node("Mul", ["before", "factor"], [name])
        model.graph.initializer.append(numpy_helper.from_array(np.float32(factor), "factor"))
        model.graph.node.append(product)

    return change


CHANGES: dict[str, tuple[str, Change]] = {
    "the last bit of an input's scale": (
        "the file's scale differs",
        lambda m: own_constant(m, behind(m, nodes(m, "Conv")[1], 0), 1, next_bit(0)),
    ),
    "an input's zero point": (
        "the file's zero point differs",
        lambda m: own_constant(m, behind(m, nodes(m, "Conv")[1], 0), 2, add(1)),
    ),
    "a bias's zero point": (
        "the file's bias has a zero point",
        lambda m: own_constant(m, behind(m, nodes(m, "Conv")[0], 2), 2, add(1, 2)),
    ),
    "a bias in float": ("bias in another form than int32", float_bias),
    "a weight in float": ("the file does not dequantize this weight", float_weight),
    "a weight that is computed": ("computes this weight instead of storing it", computed_weight),
    "logits a little larger": ("the logits differ by 2.0e-04 of the largest", times_logits(1.0002)),
    "logits that are no numbers": ("the logits differ by nan of the largest", times_logits(np.nan)),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_file_that_differs_in_this_fails_and_says_so(
    what: str, small: nn.Module, exported, tmp_path: Path
) -> None:
    student, images, artefact = exported(small, "w8a8")
    expected, change = CHANGES[what]
    write_changed(artefact.path, change, tmp_path / "changed.onnx")
    certificate = certify(
        tmp_path / "changed.onnx", student, images, simulation=artefact.simulation
    )
    assert not certificate.holds
    assert expected in str(certificate.fault)


class Shifted(nn.Module):
    """Subtracts a number per channel from its images."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("middle", torch.tensor([0.31, -0.2, 0.17]).view(1, 3, 1, 1))
        self.conv, self.head = nn.Conv2d(3, 4, 5, stride=5), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x - self.middle)).mean((2, 3)))


def test_a_number_kept_in_float_is_compared_to_the_last_bit(exported, tmp_path: Path) -> None:
    student, images, artefact = exported(Shifted(), "w8a8", plan="every_layer")
    model = onnx.load(artefact.path)
    held = next(c for c in model.graph.initializer if list(c.dims) == [1, 3, 1, 1])
    replace_constant(model, held.name, next_bit(1))
    onnx.save(model, tmp_path / "changed.onnx")
    fault = certify(tmp_path / "changed.onnx", student, images).fault
    assert fault == f"{held.name}: the file's values differ from the simulation's"


def test_one_wrong_image_among_several_batches_is_found(exported, tmp_path: Path) -> None:
    """Images so large that two make a batch; the logits of a bright one are a hundredth larger."""
    student, images, artefact = exported(Shifted(), "w8a8", shape=(3, 200, 250))
    model = onnx.load(artefact.path)
    logits = model.graph.output[0].name
    producer(model, logits).output[0] = "before"
    numbers = {"bright": np.float32(50), "more": np.float32(1.01), "one": np.float32(1)}
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in numbers.items())
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 2, 3]), "behind_images"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 1]), "column"))
    model.graph.node.extend(
        [
            helper.make_node("ReduceMax", ["images", "behind_images"], ["brightest"], keepdims=0),
            helper.make_node("Greater", ["brightest", "bright"], ["is_bright"]),
            helper.make_node("Where", ["is_bright", "more", "one"], ["by"]),
            helper.make_node("Reshape", ["by", "column"], ["by_image"]),
            helper.make_node("Mul", ["before", "by_image"], [logits]),
        ]
    )
    onnx.save(model, tmp_path / "changed.onnx")
    unchanged = certify(tmp_path / "changed.onnx", student, images)
    assert unchanged.holds, unchanged.fault
    # A seventh image would be a batch by itself.
    assert (unchanged.images, unchanged.batch_sizes) == (6, [1, 2])
    assert unchanged.values > 6 * 3 * 200 * 250
    for wrong in (1, 5):
        given = images.images.clone()
        given[wrong, 2, 17, 30] = 60.0
        fault = certify(tmp_path / "changed.onnx", student, ImageSet(given)).fault
        assert "the logits differ by 1.0e-02" in str(fault)


def test_logits_that_exposing_the_codes_changes_are_a_fault(
    small: nn.Module, exported, tmp_path: Path
) -> None:
    _, images, artefact = exported(small, "w8a8")
    write_changed(artefact.path, times_logits(1 + 2e-7), tmp_path / "shipped.onnx")
    shipped = session(tmp_path / "shipped.onnx")
    exposed, same = certificate_module._exposed(artefact.path, artefact.simulation)
    assert same
    comparison = CodeComparison(artefact.simulation)
    _, fault = certificate_module._compare(comparison, images.images, shipped, exposed)
    assert fault == "exposing the codes changes the logits"


def test_kernels_that_exposing_the_codes_changes_are_a_fault(
    small: nn.Module, exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, images, artefact = exported(small, "w8a8")
    exposed, _ = certificate_module._exposed(artefact.path, artefact.simulation)
    monkeypatch.setattr(certificate_module, "_exposed", lambda *_: (exposed, False))
    certificate = certify(artefact.path, student, images, simulation=artefact.simulation)
    assert not certificate.holds
    assert certificate.fault == "exposing the codes changes which integer kernels run"
