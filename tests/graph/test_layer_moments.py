"""Moments of all images within a limit of memory: the same to the last bit, wherever values lie."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.graph import layer_moments
from emptyset.graph.layer_moments import Moments, float_moments, quantized_moments_in_turn
from emptyset.graph.operators import layer_path, weighted_layers
from emptyset.graph.room import MappedFile
from emptyset.graph.student import Student, prepare
from emptyset.images.image_set import ImageSet
from emptyset.refiners.calibrate import Calibrate, CalibrateConfig
from emptyset.teachers.teacher import InputSpec, Teacher, hash_of_weights

IMAGES = 11


class Branched(nn.Module):
    """A shortcut, channels taken apart and put together again, tokens, sizes of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.left, self.right = nn.Conv2d(4, 5, 1), nn.Conv2d(2, 5, 1)
        self.tokens, self.head = nn.Linear(10, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.body(x))
        left, right = x.split((4, 2), dim=1)
        x = torch.cat([self.left(left), self.right(right)], 1)
        x = x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, 10)
        return self.head(F.relu(self.tokens(x)).mean(1))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(IMAGES, 3, 6, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def student(images: Tensor) -> Student:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Branched().requires_grad_(False).eval()
    spec = InputSpec((3, 6, 8), (0.5,) * 3, (0.25,) * 3)
    teacher = Teacher("branched", module, spec, weights_hash=hash_of_weights(module))
    made = prepare(teacher, "w4a4", plan="every_layer")
    Calibrate(CalibrateConfig()).refine(made, ImageSet(images))
    return made


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the files that were made."""
    sizes: list[int] = []

    def watched(size: int) -> MappedFile:
        sizes.append(size)
        return MappedFile(size)

    monkeypatch.setattr(layer_moments, "MappedFile", watched)
    return sizes


def moments(student: Student, images: Tensor, limit: int | None) -> list[Moments]:
    layers = weighted_layers(student.program)
    found = quantized_moments_in_turn(student, layers, images.split(4), limit=limit)
    return [one for _, one in found]


# Of one image the stem's output takes 4 * 6 * 48 bytes; three batches are 4, 4 and 3 images.
ONE = 4 * 6 * 48


@pytest.mark.parametrize("limit", [0, 3 * ONE, 5 * ONE, 9 * ONE, 20 * ONE])
def test_files_change_no_bit(
    limit: int, student: Student, images: Tensor, files: list[int]
) -> None:
    expected = moments(student, images, None)
    assert files == []
    found = moments(student, images, limit)
    assert files
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.mean, other.mean)
        assert torch.equal(one.deviation, other.deviation)


def test_no_more_than_the_limit_is_held_and_nothing_in_files_without_need(
    student: Student, images: Tensor, files: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    most = [0]
    take = layer_moments._Room.take

    def watched(self: layer_moments._Room, size: int) -> bool:
        taken = take(self, size)
        # The images themselves are not counted.
        if self._limit is not None:
            most[0] = max(most[0], self._held)
        return taken

    monkeypatch.setattr(layer_moments._Room, "take", watched)
    for limit in (0, 4 * ONE, 15 * ONE):
        most[0] = 0
        moments(student, images, limit)
        assert most[0] <= limit
    needed = 1 << 30
    moments(student, images, needed)
    # Input and output of the body, and what its sum is quantized to, overlap by one batch only.
    assert most[0] <= (2 * IMAGES + 4) * ONE
    files.clear()
    moments(student, images, most[0])
    assert files == []
    moments(student, images, most[0] - 1)
    assert files != []


class Placed(nn.Module):
    """Convolutions of one and three dimensions, and a linear with as many outputs as rows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.line = nn.Linear(3, 6), nn.Conv1d(6, 5, 3)
        self.space, self.head = nn.Conv3d(1, 4, (3, 2, 1)), nn.Linear(4, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.linear(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        x = F.relu(self.line(x.flatten(2))).unsqueeze(1).unflatten(3, (2, 23))
        return self.head(F.relu(self.space(x)).mean((2, 3, 4)))


def test_channels_lie_where_the_operator_has_them(images: Tensor) -> None:
    net = Placed().requires_grad_(False).eval()
    spec = InputSpec((3, 6, 8), (0.5,) * 3, (0.25,) * 3)
    student = prepare(Teacher("placed", net, spec), "w4a4", plan="every_layer")
    Calibrate(CalibrateConfig()).refine(student, ImageSet(images))
    layers, kept = weighted_layers(student.program), {}
    for name, module in net.named_children():
        module.register_forward_hook(lambda _, __, out, name=name: kept.update({name: out}))
    net(images)
    others = {"linear": (0, 1, 2), "line": (0, 2), "space": (0, 2, 3, 4), "head": (0,)}
    found = float_moments(student, layers, images.split(4))
    in_turn = dict(quantized_moments_in_turn(student, layers, images.split(4)))
    assert [layer_path(layer) for layer in layers] == list(others)
    for layer in layers:
        values, axes = kept[layer_path(layer)].double(), others[layer_path(layer)]
        torch.testing.assert_close(found[layer].mean, values.mean(axes), atol=1e-6, rtol=1e-5)
        spread = values.var(axes, correction=0).sqrt()
        torch.testing.assert_close(found[layer].deviation, spread, atol=1e-6, rtol=1e-5)
        assert in_turn[layer].mean.shape == found[layer].mean.shape


def test_sums_in_parts_are_those_of_all_values(
    student: Student, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_of(parts: int) -> list[Moments]:
        monkeypatch.setattr(layer_moments, "_SUMMED", parts)
        return list(float_moments(student, layers, images.split(5)).values())

    layers = weighted_layers(student.program)
    for one, other in zip(all_of(1 << 22), all_of(1), strict=True):
        torch.testing.assert_close(one.mean, other.mean, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(one.deviation, other.deviation, atol=1e-12, rtol=1e-12)
