"""Re-estimation: every channel has the mean and deviation it had, and no weight code changes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from layer_outputs import quantized_moments
from torch import nn

import emptyset
from emptyset.errors import ImagesError, NotCalibratedError, UnsupportedModelError
from emptyset.graph.layer_moments import Moments, float_moments, quantized_moments_in_turn
from emptyset.graph.operators import layer_path, weighted_layers
from emptyset.graph.student import Student, prepare
from emptyset.images.image_set import ImageSet
from emptyset.images.no_images import NO_IMAGES
from emptyset.monitor import State
from emptyset.refiners.batch_norm_reestimation import (
    BatchNormReestimation,
    BatchNormReestimationConfig,
)
from emptyset.refiners.calibrate import Calibrate, CalibrateConfig
from emptyset.refiners.folded_students import add_to_bias


def calibrated(small: Any, module: nn.Module, bits: str = "w3a4", plan: str = "integer") -> Student:
    student = prepare(small.teacher_of(module), bits, plan=plan)
    Calibrate(CalibrateConfig()).refine(student, small.images(24))
    return student


def reestimate(student: Student, shown: Any, **options: Any) -> None:
    monitor = {"monitor": options.pop("monitor")} if "monitor" in options else {}
    config = BatchNormReestimationConfig(**{"largest_factor": 10.0, **options})
    BatchNormReestimation(config).refine(student, shown, **monitor)


def test_moments_over_batches_are_those_of_all_values_at_once(small: Any) -> None:
    student, x = prepare(small.teacher_of(small.Plain()), "w8a8"), small.images(11).images
    layers = weighted_layers(student.program)
    found = float_moments(student, layers, list(x.split(4)))
    net = student.teacher.module
    for layer, module in zip(layers[:2], (net.first, net.second), strict=True):
        values = module[1](module[0](x)).double()
        torch.testing.assert_close(found[layer].mean, values.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
        spread = values.var((0, 2, 3), correction=0).sqrt()
        torch.testing.assert_close(found[layer].deviation, spread, atol=1e-5, rtol=1e-4)
        x = module[2](module[1](module[0](x)))


@pytest.mark.parametrize("net", ["Plain", "Mobile", "residual"])
def test_moments_in_turn_are_those_of_all_values_at_once(net: str, small: Any) -> None:
    if net == "residual":
        student = prepare(emptyset.load("embedded:digits-resnet"), "w3a4", plan="integer")
        x = torch.randn(11, 1, 16, 16, generator=torch.Generator().manual_seed(1))
        Calibrate(CalibrateConfig()).refine(student, ImageSet(x))
    else:
        student, x = calibrated(small, getattr(small, net)()), small.images(11).images
    layers = weighted_layers(student.program)
    expected = quantized_moments(student, layers, x)
    found = dict(quantized_moments_in_turn(student, layers, x.split(4)))
    assert list(found) == layers
    for layer in layers:
        torch.testing.assert_close(found[layer].mean, expected[layer].mean, atol=1e-6, rtol=1e-5)
        spread = expected[layer].deviation
        torch.testing.assert_close(found[layer].deviation, spread, atol=1e-6, rtol=1e-5)


def test_what_is_changed_in_a_layer_is_seen_behind_it_and_nodes_run_once(small: Any) -> None:
    student, x = calibrated(small, small.Plain()), small.images(11).images
    layers = weighted_layers(student.program)
    calls: list[int] = []
    student.quantizers["input"].register_forward_hook(
        lambda _m, inputs, _out: calls.append(len(inputs[0]))
    )
    before = quantized_moments(student, layers, x)
    calls.clear()
    found = {}
    for layer, moments in quantized_moments_in_turn(student, layers, x.split(4)):
        found[layer] = moments
        if layer is layers[0]:
            add_to_bias(student, layer, -moments.mean)
    assert calls == [4, 4, 3]
    after = quantized_moments(student, layers, x)
    torch.testing.assert_close(found[layers[0]].mean, before[layers[0]].mean)
    assert after[layers[0]].mean.abs().max() < 1e-3 * before[layers[0]].deviation.max()
    for layer in layers[1:]:
        torch.testing.assert_close(found[layer].mean, after[layer].mean, atol=1e-6, rtol=1e-5)
        assert (after[layer].mean - before[layer].mean).abs().max() > 1e-3


def gaps(student: Student, shown: Any) -> dict[str, tuple[float, float]]:
    """Largest gap of means and of deviations, in the float network's deviations."""
    layers, batches = weighted_layers(student.program), [shown.images]
    wanted, found = float_moments(student, layers, batches), {}
    real = quantized_moments(student, layers, shown.images)
    for layer in layers:
        now, then = real[layer], wanted[layer]
        mean = ((now.mean - then.mean).abs() / then.deviation).max().item()
        spread = ((now.deviation - then.deviation).abs() / then.deviation).max().item()
        found[layer_path(layer)] = (mean, spread)
    return found


@pytest.mark.parametrize("layers", ["batch_norm", "all"])
def test_means_and_deviations_are_met(layers: str, small: Any) -> None:
    student, shown = calibrated(small, small.Plain(), plan="edges_8bit"), small.images(24)
    before = gaps(student, shown)
    reestimate(student, shown, layers=layers)
    after = gaps(student, shown)
    corrected = {"first.0", "second.0"} if layers == "batch_norm" else set(before)
    for name in corrected:
        assert max(after[name]) < 1e-3, name
    assert max(max(before[name]) for name in corrected) > 0.05
    with student.float_mode():
        expected = student.teacher.module(shown.images)
        torch.testing.assert_close(student(shown.images), expected, atol=1e-4, rtol=1e-5)


def test_no_weight_code_changes(small: Any) -> None:
    student, shown = calibrated(small, small.Mobile()), small.images(24)
    weights = {name: q for name, q in student.quantizers.items() if q.axis is not None}
    state = student.program.state_dict()
    codes = {name: q.codes(state[name]) for name, q in weights.items()}
    scales = {name: q.scale.clone() for name, q in weights.items()}
    reestimate(student, shown)
    state = student.program.state_dict()
    assert all(torch.equal(q.codes(state[name]), codes[name]) for name, q in weights.items())
    assert any(not torch.equal(q.scale, scales[name]) for name, q in weights.items())


def test_the_correction_is_the_published_one_and_blends(small: Any) -> None:
    found = Moments(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([2.0, 1.0, 0.0]))
    wanted = Moments(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([3.0, 4.0, 1.0]))
    whole = BatchNormReestimation(BatchNormReestimationConfig())._correction(found, wanted)
    # One channel may not grow fourfold, one is constant: it is moved only.
    assert whole[0].tolist() == [1.5, 2.0, 1.0]
    assert whole[1].tolist() == [1.5, -2.0, -4.0]
    half = BatchNormReestimation(BatchNormReestimationConfig(blend=0.5))._correction(found, wanted)
    assert half[0].tolist() == [1.25, 2.0, 1.0]
    assert half[1].tolist() == [0.75, -2.0, -2.0]
    none = BatchNormReestimation(BatchNormReestimationConfig(blend=0.0))._correction(found, wanted)
    assert none[0].tolist() == [1.0] * 3
    assert none[1].tolist() == [0.0] * 3


def test_fewer_images_are_used_where_asked(small: Any) -> None:
    first, second = (calibrated(small, small.Plain()) for _ in range(2))
    shown = small.images(24)
    reestimate(first, shown, most_images=10, batch_size=4)
    reestimate(second, shown.subset(torch.arange(10)), batch_size=4)
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())


class Killed(Exception):  # noqa: N818 - what stops the run, not a fault
    pass


class Disk:
    def __init__(self, limit: int | None = None) -> None:
        self.states: dict[str, State] = {}
        self.limit, self.seen = limit, 0

    def advance(self, what: str, done: int, total: int, detail: str = "") -> None:
        self.seen += 1

    def note(self, message: str) -> None:
        raise AssertionError(message)

    def keep(self, key: str, state: Callable[[], State], *, final: bool = False) -> None:
        self.states[key] = {name: value.clone() for name, value in state().items()}
        if self.limit is not None and self.seen >= self.limit:
            raise Killed

    def restore(self, key: str) -> State | None:
        return self.states.get(key)


def test_a_killed_reestimation_goes_on_and_ends_the_same(small: Any) -> None:
    whole, shown = calibrated(small, small.Mobile()), small.images(12)
    killed, resumed = whole.copy(), whole.copy()
    reestimate(whole, shown)
    disk = Disk(limit=3)
    with pytest.raises(Killed):
        reestimate(killed, shown, monitor=disk)
    disk.limit = None
    reestimate(resumed, shown, monitor=disk)
    expected = whole.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in resumed.state_dict().items())


def test_dead_channels_stay_finite(small: Any) -> None:
    net = small.Plain()
    teacher = small.teacher_of(net)
    with torch.no_grad():
        net.first[1].weight[2] = 0.0
        net.second[0].weight[3] = 0.0
    student = prepare(teacher, "w2a4")
    Calibrate(CalibrateConfig()).refine(student, small.images(8))
    reestimate(student, small.images(8), layers="all")
    assert bool(torch.isfinite(student(small.images(5).images)).all())


def test_what_it_needs_is_asked_for(small: Any) -> None:
    student = prepare(small.teacher_of(small.Plain()), "w8a8")
    with pytest.raises(NotCalibratedError, match="Run the refiner 'calibrate' first"):
        reestimate(student, small.images(4))
    Calibrate(CalibrateConfig()).refine(student, small.images(4))
    with pytest.raises(ImagesError, match="there are no images"):
        reestimate(student, NO_IMAGES)
    bare = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 10, 5))
    without = calibrated(small, bare)
    with pytest.raises(UnsupportedModelError, match="Set layers to 'all'"):
        reestimate(without, small.images(4))
    reestimate(without, small.images(4), layers="all")


def test_settings_are_checked() -> None:
    for wrong, message in (
        ({"layers": "some"}, "layers must be one of batch_norm, all"),
        ({"blend": 1.5}, "blend must be from 0 to 1"),
        ({"largest_factor": 0.5}, "largest_factor must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            BatchNormReestimationConfig(**wrong)
