"""The file holds what the simulation computes, in the form that a runtime runs on integers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from in_turn import in_turn
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from emptyset.errors import NotCalibratedError
from emptyset.exporters import onnx as exporter
from emptyset.exporters.certificate import certify
from emptyset.exporters.kernels import session
from emptyset.exporters.onnx import export
from emptyset.exporters.simulation import simulate
from emptyset.graph.operators import attribute, name_of
from emptyset.graph.student import prepare
from emptyset.teachers import load_teacher


def constants(path: Path) -> dict[str, TensorProto]:
    return {c.name: c for c in onnx.load(path).graph.initializer}


def run(path: Path, images: Tensor) -> np.ndarray:
    return session(path).run(None, {"images": images.numpy()})[0]


@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w4a4", "w3a3", "w2a4"])
def test_student_simulation_and_file_agree(bits: str, small: nn.Module, exported) -> None:
    student, images, artefact = exported(small, bits)
    assert torch.equal(artefact.simulation(images.images), student(images.images))
    certificate = certify(artefact.path, student, images)
    assert certificate.holds, certificate.fault
    assert certificate.prediction_agreement == 1.0
    assert certificate.images == len(images)
    assert certificate.summary().startswith("holds: ")


@pytest.mark.parametrize("plan", ["every_layer", "edges_8bit"])
@pytest.mark.parametrize("batch_norm", ["fold", "frozen"])
def test_the_published_plans_export_exactly_too(
    plan: str, batch_norm: str, small: nn.Module, exported
) -> None:
    student, images, artefact = exported(small, "w4a4", plan=plan, batch_norm=batch_norm)
    certificate = certify(artefact.path, student, images)
    assert certificate.holds, certificate.fault


def test_exporting_leaves_the_student_trainable_and_as_it_was(small: nn.Module, exported) -> None:
    student, images, artefact = exported(small, "w4a4")
    before = student.state_dict()
    export(student, artefact.path)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    with student.float_mode():
        expected = student.teacher.module(images.images)
        torch.testing.assert_close(student(images.images), expected, atol=1e-5, rtol=0)


def test_an_activation_above_its_range_saturates_in_the_file(small: nn.Module, exported) -> None:
    student, images, artefact = exported(small, "w4a4")
    model = onnx.load(artefact.path)
    clips = [n for n in model.graph.node if n.op_type == "Clip"]
    for clip in clips:
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(clip.output[0]))
    running = onnx.shape_inference.infer_shapes(model).SerializeToString()
    loud = 50 * images.images
    values = session(running).run(None, {"images": loud.numpy()})[1:]
    tops = {int(numpy_helper.to_array(constants(artefact.path)[c.input[2]])) for c in clips}
    assert 15 in tops
    assert max(int(v.max()) for v in values) <= 255
    for clip, codes in zip(clips, values, strict=True):
        top = int(numpy_helper.to_array(constants(artefact.path)[clip.input[2]]))
        assert codes.dtype == np.uint8
        assert int(codes.max()) <= top
    np.testing.assert_allclose(run(artefact.path, loud), student(loud).numpy(), atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "kind"), [({"affine_weights": True}, "UINT4"), ({"affine_weights": False}, "INT4")]
)
def test_4_bit_weights_take_4_bits_in_the_file(
    settings: dict[str, bool], kind: str, small: nn.Module, exported
) -> None:
    _, _, artefact = exported(small, "w4a4", plan_settings=settings)
    held = constants(artefact.path)
    narrow = [c for c in held.values() if c.data_type == getattr(TensorProto, kind)]
    assert sorted(tuple(c.dims) for c in narrow) == [(6, 6, 3, 3), (7, 6, 3, 3)]
    sizes = [numpy_helper.to_array(c).size for c in narrow]
    assert [c.ByteSize() < 0.5 * n + 80 for c, n in zip(narrow, sizes, strict=True)] == [True, True]
    operators = [n.op_type for n in onnx.load(artefact.path).graph.node]
    assert operators.count("Sub") == (2 if kind == "UINT4" else 0)
    assert "4-bit weights are stored in 4 bits" in " ".join(artefact.notes)


def test_narrower_weights_are_stored_in_4_bits_with_a_note(small: nn.Module, exported) -> None:
    _, _, artefact = exported(small, "w2a4")
    assert any("2-bit weights are stored in 4 bits each" in note for note in artefact.notes)


def test_biases_are_int32_with_the_scale_of_input_times_weight(small: nn.Module, exported) -> None:
    student, _, artefact = exported(small, "w8a8")
    model, held = onnx.load(artefact.path), constants(artefact.path)
    producers = {n.output[0]: n for n in model.graph.node}
    layers = [n for n in model.graph.node if n.op_type in ("Conv", "Gemm")]
    assert len(layers) == 4
    for layer in layers:
        data, weight, bias = (producers[name] for name in layer.input)
        codes, scale, zero = (numpy_helper.to_array(held[name]) for name in bias.input)
        assert codes.dtype == np.int32
        assert not zero.any()
        parts = [numpy_helper.to_array(held[n.input[1]]) for n in (data, weight)]
        np.testing.assert_array_equal(scale, parts[0] * parts[1])
    # By hand for the first: code = round(bias / (input scale * weight scale)).
    first, q = student.teacher.module.first, student.quantizers
    step = q["input"].scale.double() * q["first.weight"].scale.double()
    expected = (first.bias.double() / step).round().numpy()
    codes = numpy_helper.to_array(held[producers[layers[0].input[2]].input[0]])
    np.testing.assert_array_equal(codes, expected)


def test_a_bias_that_would_overflow_raises_its_channels_scale(small: nn.Module, exported) -> None:
    small.requires_grad_(False)
    small.third.weight[2] *= 1e-8
    small.third.bias[2] = 3.0
    student, images, artefact = exported(small, "w8a8")
    bias = next(b for b in artefact.simulation.biases.values() if len(b.codes) == 7)
    assert 0.99 * 2**30 < int(bias.codes.abs().max()) <= 2**30
    assert certify(artefact.path, student, images).holds
    with student.float_mode():
        assert torch.allclose(student(images.images), student.teacher.module(images.images))
    torch.testing.assert_close(
        student(images.images), student.teacher.module(images.images), atol=0.1, rtol=0.1
    )


def test_metadata_says_what_the_file_is_and_nothing_of_the_build(
    small: nn.Module, calibrated, tmp_path: Path
) -> None:
    student, _ = calibrated(small, "w4a8")
    student.teacher = replace(
        student.teacher, weights_hash="abc123", class_names=tuple("abcde"), name="file:/home/x/w.pt"
    )
    path = tmp_path / "model.onnx"
    export(student, path, metadata={"recipe_hash": "f00d"})
    found = {e.key: e.value for e in onnx.load(path).metadata_props}
    assert found["emptyset.teacher_hash"] == "abc123"
    assert found["emptyset.recipe_hash"] == "f00d"
    assert json.loads(found["emptyset.class_names"]) == list("abcde")
    assert json.loads(found["emptyset.mean"]) == [0.5, 0.5, 0.5]
    assert json.loads(found["emptyset.std"]) == [0.25, 0.25, 0.25]
    assert (found["emptyset.bits"], found["emptyset.plan"]) == ("w4a8", "integer")
    assert found["emptyset.version"]
    assert all(key.startswith("emptyset.") for key in found)
    raw = path.read_bytes()
    for word in (
        b"pkg.torch",
        b"stack_trace",
        b".py",
        str(tmp_path).encode(),
        b"/home",
        b"namespace",
    ):
        assert word not in raw, word


def test_the_file_takes_any_batch_and_gives_the_same_logits(small: nn.Module, exported) -> None:
    _, images, artefact = exported(small, "w8a8")
    together = run(artefact.path, images.images)
    for count in (1, 3):
        np.testing.assert_array_equal(run(artefact.path, images.images[:count]), together[:count])
    model = onnx.load(artefact.path)
    assert model.graph.input[0].name == "images"
    assert model.graph.output[0].name == "logits"
    assert {v.version for v in model.opset_import if not v.domain} == {21}


def test_the_float_file_is_the_teacher(small: nn.Module, calibrated, tmp_path: Path) -> None:
    student, images = calibrated(small, "w8a8")
    artefact = export(student, tmp_path / "model.onnx", float_path=tmp_path / "float.onnx")
    expected = student.teacher.module(images.images).numpy()
    np.testing.assert_allclose(run(tmp_path / "float.onnx", images.images), expected, atol=1e-5)
    assert artefact.float_size_bytes == (tmp_path / "float.onnx").stat().st_size
    assert artefact.size_bytes == artefact.path.stat().st_size
    assert json.loads(json.dumps(artefact.to_json()))["file"] == "model.onnx"


def test_frozen_batch_norm_with_negative_factors_folds_with_codes_mirrored(
    small: nn.Module, calibrated
) -> None:
    student, images = calibrated(small, "w4a4", plan="every_layer", batch_norm="frozen")
    gamma = student.program.norm.frozen_weight
    with torch.no_grad():
        gamma[1:4] *= -1
    simulation = simulate(student)
    nodes = {n.name: n for n in simulation.program.graph.nodes}
    assert not {name_of(n) for n in nodes.values()} & {"sub", "mul"}
    # (w * x - mean) * factor + beta, by hand.
    factor = (student.program.norm.frozen_inverse_std * gamma).flatten()
    quantizer = student.quantizers["second.weight"]
    expected = quantizer(student.program.second.weight) * factor.view(-1, 1, 1, 1)
    codes, scale, zero_point = (
        attribute(simulation.program, str(a.target)) for a in nodes["conv2d_1"].args[1].args[:3]
    )
    stored = (codes - zero_point.view(-1, 1, 1, 1)) * scale.view(-1, 1, 1, 1)
    torch.testing.assert_close(stored, expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(scale, quantizer.scale * factor.abs())
    norm, held = student.program.norm, simulation.biases["conv2d_1"]
    bias = norm.frozen_bias.flatten() - norm.frozen_mean.flatten() * factor
    assert bool(((held.codes * held.scale - bias).abs() <= 0.5001 * held.scale).all())
    # Biases apart, which only the file rounds, it is the student.
    torch.testing.assert_close(
        simulation(images.images), student(images.images), atol=0.02, rtol=0.05
    )


class Clipped(nn.Module):
    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 6, 3)
        self.clip, self.last = clip, nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.second(self.clip(3 * self.first(x)))).mean((2, 3)))


class SharedScale(Clipped):
    """The concatenation's scale reaches below zero; the ReLU in it does not."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.second(torch.cat([F.relu(x[:, :3]), x[:, 3:]], 1)).mean((2, 3)))


@pytest.mark.parametrize(
    "module",
    [Clipped(nn.ReLU6()), Clipped(nn.Hardtanh(-0.5, 0.4)), SharedScale(nn.Identity())],
    ids=["relu6", "hardtanh with a negative low", "relu at a shared scale"],
)
@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
def test_clips_are_absorbed_by_the_codes(module: nn.Module, bits: str, exported) -> None:
    student, images, artefact = exported(module, bits)
    assert torch.equal(artefact.simulation(images.images), student(images.images))
    certificate = certify(artefact.path, student, images)
    assert certificate.holds, certificate.fault
    for node in onnx.load(artefact.path).graph.node:
        assert node.op_type != "Relu"
    assert "Relu" not in artefact.operators


@pytest.mark.parametrize(
    ("name", "bits"), in_turn(["digits-resnet", "digits-mobilenet"], ("w8a8", "w4a4"))
)
def test_the_embedded_networks_run_on_integers_from_end_to_end(
    name: str, bits: str, calibrate, tmp_path: Path
) -> None:
    teacher = load_teacher(f"embedded:{name}")
    student = prepare(teacher, bits)
    images = calibrate(student, torch.randn(8, *teacher.input.shape))
    artefact = export(student, tmp_path / "model.onnx")
    assert artefact.fallbacks == []
    assert artefact.integer_share == 1.0
    assert artefact.operators.get("Conv", 0) == 0
    assert artefact.operators["QLinearConv"] >= 5
    assert artefact.other_pairs == 0
    if bits == "w8a8":
        assert artefact.series_pairs == 0
    assert certify(artefact.path, student, images, simulation=artefact.simulation).holds


class Twice(nn.Module):
    """One convolution called twice: one weight, two input scales, two int32 biases."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 5, 3, padding=1)
        self.last = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.again(F.relu(self.again(F.relu(self.first(x))))))
        return self.last(x.mean((2, 3)))


class Turned(nn.Module):
    """Layers of other forms: grouped and transposed, and a linear with the batch second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.wide = nn.Conv2d(3, 6, 2, 2), nn.ConvTranspose2d(6, 4, 2, 2, groups=2)
        self.inner, self.last = nn.Linear(4, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.wide(F.relu(self.first(x))))
        return self.last(self.inner(x.flatten(2).permute(2, 0, 1)).mean(0))


class OneOutputAGroup(nn.Module):
    """A transposed convolution whose one weight scale serves all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.wide = nn.ConvTranspose2d(6, 6, 2, 2, groups=6)
        self.last = nn.Linear(6, 5)
        nn.init.normal_(self.wide.bias, std=2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.wide(F.relu(self.first(x))))
        return self.last(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("build", "bits"), in_turn([Twice, Turned, OneOutputAGroup], ("w8a8", "w4a4"))
)
def test_unusual_layers_export_exactly(build: type[nn.Module], bits: str, exported) -> None:
    student, images, artefact = exported(build(), bits)
    assert torch.equal(artefact.simulation(images.images), student(images.images))
    certificate = certify(artefact.path, student, images)
    assert certificate.holds, certificate.fault


def test_where_one_scale_serves_all_channels_the_largest_bias_raises_it(exported) -> None:
    network = OneOutputAGroup()
    nn.init.zeros_(network.wide.weight)
    student, images, artefact = exported(network, "w4a4")
    assert artefact.simulation.raised == {"wide": 1}
    codes = artefact.simulation.biases["conv_transpose2d"].codes.double()
    bias = network.wide.bias.detach().double()
    assert torch.allclose(codes / 2**30, bias / bias.abs().max(), atol=1e-6)
    assert certify(artefact.path, student, images, simulation=artefact.simulation).holds


def test_before_calibration_nothing_is_written(
    teacher_of, small: nn.Module, tmp_path: Path
) -> None:
    with pytest.raises(NotCalibratedError, match=r"quantizers have no range yet.*calibrate"):
        export(prepare(teacher_of(small), "w8a8"), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("external", [False, True])
def test_nothing_half_written_stays_when_the_check_fails(
    external: bool, small: nn.Module, calibrated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.first = nn.Conv2d(3, 6, 15, padding=7)  # one tensor large enough for a second file
    student, _ = calibrated(small, "w8a8")
    (tmp_path / "model.onnx").write_text("the last good one")

    def refuse(model: object) -> None:
        raise onnx.checker.ValidationError("not a model")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    monkeypatch.setattr(exporter, "LARGEST_PROTOBUF", 0 if external else 2**31)
    with pytest.raises(onnx.checker.ValidationError):
        export(student, tmp_path / "model.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "the last good one"


def test_above_2_gigabytes_tensors_go_beside_the_file(
    small: nn.Module, calibrated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.first = nn.Conv2d(3, 6, 15, padding=7)  # one tensor above the threshold for a second file
    student, images = calibrated(small, "w8a8")
    monkeypatch.setattr(exporter, "LARGEST_PROTOBUF", 0)
    sizes = [export(student, tmp_path / "model.onnx").size_bytes for _ in range(2)]
    assert sizes[0] == sizes[1] == sum(p.stat().st_size for p in tmp_path.iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert certify(tmp_path / "model.onnx", student, images).holds
