"""The prepared student: float mode, one layer alone, state on disk."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.errors import NotCalibratedError, RecipeError, TeacherError, UnknownNameError
from emptyset.graph.student import prepare


class Net(nn.Module):
    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.second, self.linear = nn.Conv2d(width, width, 3, padding=1), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        return self.linear(F.relu(self.second(x) + x).mean((2, 3)))


CHOICES = [
    ("integer", "fold"),
    ("every_layer", "fold"),
    ("every_layer", "frozen"),
    ("edges_8bit", "frozen"),
]


@pytest.mark.parametrize("bits", ["w8a8", "w2a3"])
@pytest.mark.parametrize(("plan", "batch_norm"), CHOICES)
def test_float_mode_is_the_teacher(plan: str, batch_norm: str, bits: str, calibrated) -> None:
    student, images = calibrated(Net(), bits, plan=plan, batch_norm=batch_norm)
    expected = student.teacher.module(images.images)
    quantized = student(images.images)
    with student.float_mode():
        torch.testing.assert_close(student(images.images), expected, atol=1e-5, rtol=0)
    assert torch.equal(student(images.images), quantized)
    assert not torch.allclose(quantized, expected, atol=1e-5)


def test_float_mode_ends_when_an_error_leaves_it(calibrated) -> None:
    student, _ = calibrated(Net())
    with pytest.raises(KeyError), student.float_mode():
        raise KeyError
    assert all(q.enabled for q in student.quantizers.values())


def test_only_layer_quantizes_this_layers_input_and_weight(calibrated) -> None:
    student, images = calibrated(Net(), "w2a3")
    with student.only_layer("second"):
        on = [name for name, q in student.quantizers.items() if q.enabled]
        alone = student(images.images)
    assert on == ["second.weight", "network.relu.output.3bit"]
    assert all(q.enabled for q in student.quantizers.values())
    # By hand, from the float network and these two quantizers.
    net, q = student.teacher.module, student.quantizers
    x = F.relu(net.norm(net.conv(images.images)))
    step = q[on[1]].scale * q[on[0]].scale
    bias = (net.second.bias / step).round() * step
    out = F.conv2d(q[on[1]](x), q[on[0]](net.second.weight), bias, padding=1)
    expected = net.linear(F.relu(out + x).mean((2, 3)))
    torch.testing.assert_close(alone, expected, atol=1e-5, rtol=1e-4)


def test_only_layer_quantizes_every_call_of_a_layer(calibrated) -> None:
    class Twice(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.second(F.relu(self.norm(self.conv(x)))))
            return self.linear(F.relu(self.second(x)).mean((2, 3)))

    student, images = calibrated(Twice(), "w2a3", plan="every_layer")
    with student.only_layer("second"):
        on = [name for name, q in student.quantizers.items() if q.enabled]
        alone = student(images.images)
    assert on == ["second.weight", "network.relu.output", "network.relu.output.2"]
    net, q = student.teacher.module, student.quantizers
    x, weight = F.relu(net.norm(net.conv(images.images))), q["second.weight"](net.second.weight)
    for name in on[1:]:
        x = F.relu(F.conv2d(q[name](x), weight, net.second.bias, padding=1))
    torch.testing.assert_close(alone, net.linear(x.mean((2, 3))), atol=1e-5, rtol=1e-4)


def test_an_unknown_layer_names_the_nearest(calibrated) -> None:
    student, _ = calibrated(Net())
    with pytest.raises(UnknownNameError, match=r"'secnd'.*'second'"), student.only_layer("secnd"):
        pass


def test_before_calibration_it_says_what_to_do(teacher_of) -> None:
    with pytest.raises(NotCalibratedError, match=r"'.*' has no range yet.*calibrate"):
        prepare(teacher_of(Net()), "w8a8")(torch.zeros(2, 3, 8, 10))


@pytest.mark.parametrize(("plan", "batch_norm"), CHOICES)
def test_a_saved_state_gives_the_same_student(
    plan: str, batch_norm: str, calibrated, tmp_path: Path
) -> None:
    student, images = calibrated(Net(), "w3a4", plan=plan, batch_norm=batch_norm)
    student.save(tmp_path / "student.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["student.safetensors"]
    fresh = prepare(student.teacher, "w3a4", plan=plan, batch_norm=batch_norm)
    fresh.load_state(tmp_path / "student.safetensors")
    assert torch.equal(fresh(images.images), student(images.images))
    assert fresh.state_dict().keys() == student.state_dict().keys()


@pytest.mark.parametrize("bits", ["w4a8", "w8a4", "w4a4"])
def test_a_state_of_other_bits_is_refused(bits: str, calibrated, tmp_path: Path) -> None:
    student, _ = calibrated(Net(), "w8a8")
    student.save(tmp_path / "student.safetensors")
    fresh = prepare(student.teacher, bits)
    with pytest.raises(TeacherError, match=r"another student.*plan and bits"):
        fresh.load_state(tmp_path / "student.safetensors")
    # Nothing of it was taken over.
    assert not any(bool(q.calibrated) for q in fresh.quantizers.values())


def test_a_state_of_other_shapes_is_refused(calibrated, teacher_of, tmp_path: Path) -> None:
    student, _ = calibrated(Net(), "w8a8")
    student.save(tmp_path / "student.safetensors")
    with pytest.raises(TeacherError, match="another shape"):
        prepare(teacher_of(Net(width=6)), "w8a8").load_state(tmp_path / "student.safetensors")


def test_a_truncated_state_is_refused(calibrated, tmp_path: Path) -> None:
    student, _ = calibrated(Net(), "w8a8")
    path = tmp_path / "student.safetensors"
    student.save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(TeacherError, match="not a readable student"):
        student.load_state(path)


def test_a_copy_is_independent(calibrated) -> None:
    student, images = calibrated(Net(), "w4a4")
    before, copied = student(images.images), student.copy()
    assert torch.equal(copied(images.images), before)
    for quantizer in copied.quantizers.values():
        quantizer.set_parameters(quantizer.scale * 2, quantizer.zero_point)
    assert torch.equal(student(images.images), before)
    assert not torch.equal(copied(images.images), before)


def test_one_module_called_twice_is_two_layers_that_share_a_weight(calibrated) -> None:
    class Twice(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.second(F.relu(self.second(F.relu(self.conv(x))))))
            return self.linear(x.mean((2, 3)))

    student, images = calibrated(Twice(), "w8a8")
    assert [layer.name for layer in student.layers()] == ["conv", "second", "second", "linear"]
    with student.float_mode():
        expected = student.teacher.module(images.images)
        torch.testing.assert_close(student(images.images), expected, atol=1e-5, rtol=0)


def test_a_bias_too_large_for_int32_raises_its_channels_scale(calibrated) -> None:
    net = Net().requires_grad_(False)
    net.second.weight[2] *= 1e-7
    net.second.bias[2] = 50.0
    before = net.second.weight.abs().amax((1, 2, 3)) / 127
    student, _ = calibrated(net, "w8a8")
    scale = student.quantizers["second.weight"].scale
    second = next(layer for layer in student.layers() if layer.name == "second")
    step = student.quantizers[second.input_quantizer].scale.double() * scale.double()
    code = net.second.bias.double() / step
    assert abs(code[2].item()) <= 2**30
    assert abs(code[2].item()) > 0.99 * 2**30
    others = [0, 1, 3, 4]
    torch.testing.assert_close(scale[others], before[others], rtol=1e-6, atol=0)


@pytest.mark.parametrize("teacher_mode", ["batch_norm", "plan"])
def test_wrong_names_are_refused(teacher_mode: str, teacher_of: Callable) -> None:
    error = RecipeError if teacher_mode == "batch_norm" else UnknownNameError
    with pytest.raises(error, match="fold, frozen" if teacher_mode == "batch_norm" else "integer"):
        prepare(teacher_of(Net()), "w8a8", **{teacher_mode: "intger"})
