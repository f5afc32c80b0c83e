"""Calibration sets the ranges that the images and the weights have."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.errors import ImagesError, NotCalibratedError, UnknownNameError
from emptyset.graph.student import Student, prepare
from emptyset.images.image_set import Batch, ImageSet
from emptyset.monitor import State
from emptyset.refiners.calibrate import Calibrate, CalibrateConfig
from emptyset.refiners.distill import Distill, DistillConfig
from emptyset.teachers.teacher import InputSpec, Teacher


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 5, 3), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(self.conv(x)).mean((2, 3)))


@pytest.fixture
def student() -> Student:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Net().requires_grad_(False).eval()
    return prepare(Teacher("t", net, InputSpec((3, 8, 10), (0.5,) * 3, (0.2,) * 3)), "w8a8")


@pytest.fixture
def images() -> ImageSet:
    pixels = torch.rand(11, 3, 8, 10, generator=torch.Generator().manual_seed(1))
    return ImageSet((pixels - 0.5) / 0.2)


def calibrate(student: Student, images: object, **options: object) -> None:
    monitor = {"monitor": options.pop("monitor")} if "monitor" in options else {}
    Calibrate(CalibrateConfig(**options)).refine(student, images, seed=0, **monitor)


def test_ranges_of_activations_are_those_of_the_float_network(
    student: Student, images: ImageSet
) -> None:
    calibrate(student, images, batch_size=4, input_range="observed")
    net, x = student.teacher.module, images.images
    after_relu = F.relu(net.conv(x))
    for name, seen in {
        "input": x, "network.relu.output": after_relu,
        "network.mean.output": after_relu.mean((2, 3)),
    }.items():  # fmt: skip
        low, high = min(seen.min().item(), 0.0), seen.max().item()
        scale = student.quantizers[name].scale.item()
        assert scale == pytest.approx((high - low) / 255, rel=1e-5), name
        assert int(student.quantizers[name].zero_point) == round(-low / scale)


def test_the_image_has_the_range_from_black_to_white(student: Student, images: ImageSet) -> None:
    calibrate(student, images)
    low, high = -2.5, 2.5  # (0 - 0.5) / 0.2 and (1 - 0.5) / 0.2
    assert student.quantizers["input"].scale.item() == pytest.approx((high - low) / 255, rel=1e-6)
    # 127.5 steps lie below zero: a tie, either neighbour is right.
    assert int(student.quantizers["input"].zero_point) in (127, 128)


def test_an_image_that_shares_its_scale_with_features_keeps_the_observed_range() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 5, 1), nn.Linear(8, 7)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.cat([x, 40 * self.conv(x)], 1).mean((2, 3)))

    net = Joined().requires_grad_(False).eval()
    spec = InputSpec((3, 6, 4), (0.5,) * 3, (0.2,) * 3)
    student = prepare(Teacher("joined", net, spec), "w8a8")
    calibrate(student, ImageSet(torch.randn(9, 3, 6, 4)))
    assert student.quantizers["input"].scale.item() > 5 / 255


def test_weights_get_one_exact_range_per_output_channel(student: Student, images: ImageSet) -> None:
    calibrate(student, images)
    largest = student.teacher.module.conv.weight.abs().amax((1, 2, 3))
    torch.testing.assert_close(student.quantizers["conv.weight"].scale, largest / 127)


def test_the_batch_size_does_not_matter(student: Student, images: ImageSet) -> None:
    calibrate(student, images, batch_size=2)
    one = student.state_dict()
    calibrate(student, images, batch_size=64)
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, one[name], rtol=1e-5, atol=1e-7)


def test_below_8_bits_the_range_is_searched(student: Student, images: ImageSet) -> None:
    low = prepare(student.teacher, "w4a4", plan="every_layer")
    calibrate(low, images)
    largest = low.teacher.module.conv(images.images).max().item()
    assert low.quantizers["network.relu.output"].low_high()[1].item() < largest
    calibrate(low, images, activation_range="min_max")
    assert low.quantizers["network.relu.output"].low_high()[1].item() == pytest.approx(largest)


class Killed(Exception):  # noqa: N818 - what stops the run, not a fault
    pass


class Disk:
    """Keeps every state, and is killed after some."""

    def __init__(self, limit: int) -> None:
        self.states: dict[str, State] = {}
        self.limit, self.seen = limit, []

    def advance(self, what: str, done: int, total: int, detail: str = "") -> None:
        self.seen.append((what, done, total))

    def note(self, message: str) -> None:
        raise AssertionError(message)

    def keep(self, key: str, state: Callable[[], State], *, final: bool = False) -> None:
        self.states[key] = {name: value.clone() for name, value in state().items()}
        self.limit -= 1
        if self.limit == 0:
            raise Killed

    def restore(self, key: str) -> State | None:
        return self.states.get(key)


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
def test_a_killed_calibration_goes_on_and_ends_the_same(
    bits: str, student: Student, images: ImageSet
) -> None:
    whole, resumed = (prepare(student.teacher, bits) for _ in range(2))
    calibrate(whole, images, batch_size=4)
    disk = Disk(limit=2)
    with pytest.raises(Killed):
        calibrate(resumed, images, batch_size=4, monitor=disk)
    disk.seen.clear()
    calibrate(resumed, images, batch_size=4, monitor=disk)
    assert disk.seen == [("calibrate", 11, 11)]
    expected = whole.state_dict()
    assert all(torch.equal(v, expected[name]) for name, v in resumed.state_dict().items())


class Stream:
    """Images that are read as they are needed; counts how many lie in memory."""

    def __init__(self, count: int) -> None:
        self.count, self.batches_given = count, 0

    def __len__(self) -> int:
        return self.count

    def batches(self, size: int) -> Iterator[Batch]:
        for start in range(0, self.count, size):
            self.batches_given += 1
            yield Batch(torch.randn(min(size, self.count - start), 3, 8, 10), None)


def test_images_are_streamed_once(student: Student) -> None:
    stream = Stream(50)
    calibrate(student, stream, batch_size=8)
    assert stream.batches_given == 7


def test_no_image_is_refused(student: Student) -> None:
    with pytest.raises(ImagesError, match="there are no images"):
        calibrate(student, Stream(0))


def test_an_image_that_is_not_finite_is_refused_and_no_hook_stays(student: Student) -> None:
    class Bad(Stream):
        def batches(self, size: int) -> Iterator[Batch]:
            yield Batch(torch.full((2, 3, 8, 10), float("nan")), None)

    with pytest.raises((NotCalibratedError, ImagesError), match=r"NaN|finite"):
        calibrate(student, Bad(2))
    assert not any(q._forward_pre_hooks for q in student.quantizers.values())


def test_settings_are_checked() -> None:
    with pytest.raises(UnknownNameError, match="min_max"):
        CalibrateConfig(weight_range="minmax")
    with pytest.raises(ValueError, match=r"at least 1\. Got 0"):
        CalibrateConfig(batch_size=0)


def test_a_weight_that_is_a_buffer_is_calibrated_too(images: ImageSet) -> None:
    class Fixed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("kernel", torch.randn(5, 5, 2, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(F.relu(F.conv2d(F.relu(self.conv(x)), self.kernel)).mean((2, 3)))

    spec = InputSpec((3, 8, 10), (0.5,) * 3, (0.2,) * 3)
    student = prepare(Teacher("t", Fixed().requires_grad_(False).eval(), spec), "w8a8")
    calibrate(student, images)
    largest = student.teacher.module.kernel.abs().amax((1, 2, 3))
    torch.testing.assert_close(student.quantizers["kernel.weight"].scale, largest / 127)


class FirstAndSecond(nn.Module):
    """One convolution called as the first layer, of 8 bits, and as the second, of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(self.conv(x).relu()).relu().mean((2, 3)))


@pytest.mark.parametrize(
    "refiner", [None, {}, {"preset": "published", "warm_up": 0.25, "cross_entropy": 0.0}]
)
def test_one_weight_of_two_widths_gets_a_grid_for_each(
    refiner: dict[str, Any] | None, small: Any
) -> None:
    student, images = prepare(small.teacher_of(FirstAndSecond()), "w4a4"), small.images(8)
    Calibrate(CalibrateConfig()).refine(student, images)
    if refiner is not None:
        Distill(DistillConfig(steps=4, batch_size=4, **refiner)).refine(student, images)
    first, second = (student.quantizers[f"conv.weight{ending}"] for ending in ("", ".2"))
    assert {first.bits, second.bits} == {4, 8}
    weight = student.program.conv.weight.detach()
    for quantizer in (first, second):
        step = quantizer.scale.view(-1, 1, 1, 1)
        lowest, highest = (
            step * (end - quantizer.zero_point.view(-1, 1, 1, 1))
            for end in (quantizer.quant_min, quantizer.quant_max)
        )
        inside = weight.clamp(lowest, highest)
        assert bool(((quantizer(weight) - inside).abs() <= step / 2 + 1e-6).all())


def test_images_beyond_black_and_white_are_told_of(student: Student) -> None:
    heard: list[str] = []

    class Notes:
        advance = keep = staticmethod(lambda *_, **__: None)
        restore = staticmethod(lambda _: None)
        note = staticmethod(heard.append)

    # Half a pixel unit is 2.5 of these: black and white lie at ∓2.5.
    half = torch.full((3, 3, 8, 10), 2.4)
    half[:, 1] = 2.6
    calibrate(student, ImageSet(half), monitor=Notes())
    assert len(heard) == 1
    assert "33%" in heard[0]
    calibrate(student, ImageSet(half), monitor=Notes(), input_range="observed")
    assert len(heard) == 1
