"""Bias correction: the mean of every channel is where it was, told by BatchNorm or by images."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from layer_outputs import quantized_moments
from torch import Tensor, fx, nn

from emptyset.errors import ImagesError, NotCalibratedError, UnsupportedModelError
from emptyset.graph.bias_range import keep_biases_in_int32
from emptyset.graph.channel_chains import bias_of
from emptyset.graph.layer_moments import float_moments
from emptyset.graph.operators import layer_path, weighted_layers
from emptyset.graph.residual_bodies import Tapped
from emptyset.graph.student import Student, prepare
from emptyset.monitor import State
from emptyset.refiners.bias_correction import (
    BiasCorrection,
    BiasCorrectionConfig,
    mean_output,
    weight_norm_ratio,
)
from emptyset.refiners.calibrate import Calibrate, CalibrateConfig
from emptyset.refiners.equalize import Equalize, EqualizeConfig

DATA_FREE = CalibrateConfig(activation_values="batch_norm")


def calibrated(small: Any, module: nn.Module, bits: str = "w3a8", plan: str = "integer") -> Student:
    student = prepare(small.teacher_of(module), bits, plan=plan)
    Calibrate(DATA_FREE).refine(student, small.images(1))
    return student


def correct(student: Student, shown: Any, **options: Any) -> None:
    monitor = {"monitor": options.pop("monitor")} if "monitor" in options else {}
    BiasCorrection(BiasCorrectionConfig(**options)).refine(student, shown, **monitor)


def shifts(student: Student, shown: Any) -> dict[str, float]:
    """Largest shift of a channel's mean, in its own deviations, layer by layer."""
    layers, batches = weighted_layers(student.program), [shown.images]
    wanted = float_moments(student, layers, batches)
    real, found = quantized_moments(student, layers, shown.images), {}
    for layer in layers:
        moments = real[layer]
        gap = (moments.mean - wanted[layer].mean).abs() / wanted[layer].deviation.clamp(min=1e-9)
        found[layer_path(layer)] = gap.max().item()
    return found


def test_the_analytic_shift_is_the_published_formula(small: Any) -> None:
    student = calibrated(small, small.Plain(), plan="every_layer")
    before = student.state_dict()
    correct(student, small.images(1))
    net = student.teacher.module
    # The second layer reads what stands behind the first one's BatchNorm and ReLU.
    norm = net.first[1]
    gamma = norm.weight * (norm.running_var / (norm.running_var + norm.eps)).sqrt()
    ratio = (norm.bias / gamma).double()
    normal = torch.distributions.Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double())
    expected = gamma * normal.log_prob(ratio).exp() + norm.bias * normal.cdf(ratio)
    weight = before["second.0.weight"].double()
    rounded = student.quantizers["second.0.weight"](before["second.0.weight"]).double()
    shift = ((rounded - weight).flatten(1) * expected).sum(1)
    moved = before["second.0.bias"] - student.program.state_dict()["second.0.bias"]
    torch.testing.assert_close(moved.double(), shift, atol=1e-5, rtol=1e-4)


def test_the_mean_is_where_it_was_behind_normal_values(small: Any) -> None:
    """Independent route: draw the inputs, look at the outputs, zero padding included."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = small.block(3, 6, 1), nn.Conv2d(6, 5, 3, 2, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(F.relu(self.first(x))).mean((2, 3))

    student = calibrated(small, Padded(), "w2a8", plan="every_layer")
    net = student.teacher.module
    original = net.second.weight
    rounded = student.quantizers["second.weight"](original)
    norm, generator = net.first[1], torch.Generator().manual_seed(3)
    noise = torch.randn(4000, 6, 8, 12, generator=generator)
    spread = norm.weight.abs() * (norm.running_var / (norm.running_var + norm.eps)).sqrt()
    x = F.relu(norm.bias.view(-1, 1, 1) + spread.view(-1, 1, 1) * noise)
    gap = F.conv2d(x, rounded - original, stride=2, padding=1).mean((0, 2, 3))
    correct(student, small.images(1))
    moved = net.second.bias - student.program.second.bias
    torch.testing.assert_close(moved, gap, atol=0.02 * gap.abs().max().item(), rtol=0)


@pytest.mark.parametrize("plan", ["integer", "edges_8bit"])
def test_empirically_no_layer_has_a_shift_left_on_the_images(plan: str, small: Any) -> None:
    student, shown = calibrated(small, small.Mobile(), plan=plan), small.images(24)
    before = shifts(student, shown)
    correct(student, shown, statistics="empirical", batch_size=5)
    after = shifts(student, shown)
    assert max(before.values()) > 0.05
    # In plan `integer` a bias is a whole number of steps, which at 3 bits are not small.
    limit = 0.05 if plan == "integer" else 1e-3
    assert all(after[name] <= max(before[name], limit) for name in before)
    assert max(after.values()) < limit
    with student.float_mode():
        expected = student.teacher.module(shown.images)
        torch.testing.assert_close(student(shown.images), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("plan", ["integer", "edges_8bit"])
def test_no_layer_gives_a_larger_error_with_its_correction_than_without(
    plan: str, small: Any
) -> None:
    """Everything before it is corrected either way."""

    def error(layer: fx.Node) -> float:
        with torch.no_grad():
            (found,) = Tapped(student.program, [layer])(shown.images)[1]
            with student.float_mode():
                (wanted,) = Tapped(student.program, [layer])(shown.images)[1]
        return float((found - wanted).square().mean())

    student, shown = calibrated(small, small.Mobile(), plan=plan), small.images(24)
    before = {layer_path(n): bias_of(student.program, n) for n in weighted_layers(student.program)}
    before = {name: None if bias is None else bias.clone() for name, bias in before.items()}
    correct(student, shown, statistics="empirical", batch_size=5)
    better = 0
    for layer in weighted_layers(student.program):
        bias, old = bias_of(student.program, layer), before[layer_path(layer)]
        assert bias is not None
        corrected, kept = error(layer), bias.clone()
        with torch.no_grad():
            bias.copy_(torch.zeros_like(bias) if old is None else old)
            alone = error(layer)
            bias.copy_(kept)
        # In plan `integer` a bias is a whole number of steps.
        assert corrected <= alone * (1.001 if plan == "integer" else 1.00001)
        better += corrected < 0.99 * alone
    assert better > 1


def test_analytically_the_shift_of_the_logits_becomes_smaller(small: Any) -> None:
    student, shown = calibrated(small, small.Plain(), "w3a8"), small.images(200)
    net = student.teacher.module
    before = (student(shown.images) - net(shown.images)).mean(0).norm()
    correct(student, shown)
    after = (student(shown.images) - net(shown.images)).mean(0).norm()
    assert after < 0.7 * before


def test_a_layer_without_bias_gets_one_and_float_mode_does_not_see_it(small: Any) -> None:
    student, shown = calibrated(small, small.Plain()), small.images(16)
    assert "third.bias" not in student.program.state_dict()
    correct(student, shown, statistics="empirical")
    assert student.program.third.bias.abs().max() > 0
    with student.float_mode():
        expected = student.teacher.module(shown.images)
        torch.testing.assert_close(student(shown.images), expected, atol=1e-4, rtol=1e-5)
    again = prepare(student.teacher, "w3a8")
    again.load_state_dict(student.state_dict())
    assert torch.equal(again(shown.images), student(shown.images))


def test_the_norms_of_acic_are_met_and_no_code_changes(small: Any) -> None:
    student, shown = calibrated(small, small.Plain(), plan="every_layer"), small.images(8)
    weights = {name: q for name, q in student.quantizers.items() if q.axis is not None}
    state = student.program.state_dict()
    codes = {name: q.codes(state[name]) for name, q in weights.items()}
    correct(student, shown, weight_norms=True)
    state = student.program.state_dict()
    for name, quantizer in weights.items():
        assert torch.equal(quantizer.codes(state[name]), codes[name]), name
        before = student.originals[name].flatten(1)
        after = quantizer(state[name]).flatten(1)
        spread = [(v - v.mean(1, keepdim=True)).norm(dim=1) for v in (before, after)]
        torch.testing.assert_close(spread[1], spread[0], rtol=1e-4, atol=1e-6)


def test_a_row_that_is_constant_keeps_its_norm() -> None:
    weight = torch.tensor([[1.0, 2.0, 4.0], [0.5, 0.5, 0.5], [0.1, -0.1, 0.2]])
    rounded = torch.tensor([[1.0, 2.0, 5.0], [0.5, 0.5, 0.5], [0.0, 0.0, 0.0]])
    ratio = weight_norm_ratio(weight, rounded, 0)
    expected = (14 / 3) ** 0.5 / (26 / 3) ** 0.5
    assert ratio.tolist() == pytest.approx([expected, 1.0, 1.0])


def test_the_mean_output_counts_the_zeros_around(small: Any) -> None:
    net = nn.Sequential(small.block(3, 4), nn.Conv2d(4, 6, 3, 2, 1, groups=2), nn.Flatten())
    student = prepare(small.teacher_of(net), "w8a8", plan="every_layer")
    layer = weighted_layers(student.program)[1]
    from emptyset.ranges.clipped_normal import ClippedNormal

    means = torch.tensor([0.5, -1.0, 2.0, 0.3])
    told = ClippedNormal.of(means, torch.ones(4))
    expected = torch.zeros(6, dtype=torch.double)
    weight = net[1].weight.double()
    for out in range(6):
        for row in range(4):
            for column in range(6):
                for inner in range(2):
                    for i in range(3):
                        for j in range(3):
                            y, x = 2 * row + i - 1, 2 * column + j - 1
                            if 0 <= y < 8 and 0 <= x < 12:
                                mean = means[inner + 2 * (out // 3)].double()
                                expected[out] += weight[out, inner, i, j] * mean / 24
    torch.testing.assert_close(mean_output(layer, weight, told), expected)


def test_equalized_students_are_corrected_in_their_own_units(small: Any) -> None:
    plain = prepare(small.teacher_of(small.Plain()), "w8a8")
    other = prepare(plain.teacher, "w8a8")
    Equalize(EqualizeConfig()).refine(other, small.images(1))
    shown = small.images(60)
    for student in (plain, other):
        Calibrate(DATA_FREE).refine(student, shown)
        correct(student, shown)
        with student.float_mode():
            expected = student.teacher.module(shown.images)
            torch.testing.assert_close(student(shown.images), expected, atol=1e-4, rtol=1e-5)
        gap = (student(shown.images) - expected).norm() / expected.norm()
        assert gap < 0.05


class Killed(Exception):  # noqa: N818 - what stops the run, not a fault
    pass


class Disk:
    def __init__(self, limit: int | None = None) -> None:
        self.states: dict[str, State] = {}
        self.limit, self.seen = limit, []

    def advance(self, what: str, done: int, total: int, detail: str = "") -> None:
        self.seen.append((what, done, total))

    def note(self, message: str) -> None:
        raise AssertionError(message)

    def keep(self, key: str, state: Callable[[], State], *, final: bool = False) -> None:
        self.states[key] = {name: value.clone() for name, value in state().items()}
        if self.limit is not None and len(self.seen) >= self.limit:
            raise Killed

    def restore(self, key: str) -> State | None:
        return self.states.get(key)


def test_a_killed_correction_goes_on_and_ends_the_same(small: Any) -> None:
    whole, shown = calibrated(small, small.Plain()), small.images(12)
    killed, resumed = whole.copy(), whole.copy()
    correct(whole, shown, statistics="empirical")
    disk = Disk(limit=2)
    with pytest.raises(Killed):
        correct(killed, shown, statistics="empirical", monitor=disk)
    disk.limit = None
    correct(resumed, shown, statistics="empirical", monitor=disk)
    assert disk.seen[-1] == ("bias_correction", 4, 4)
    expected = whole.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in resumed.state_dict().items())


def test_what_it_needs_is_asked_for(small: Any) -> None:
    from emptyset.images.no_images import NO_IMAGES

    student = prepare(small.teacher_of(small.Plain()), "w8a8")
    with pytest.raises(NotCalibratedError, match="Run the refiner 'calibrate' first"):
        correct(student, small.images(4))
    Calibrate(DATA_FREE).refine(student, NO_IMAGES)
    with pytest.raises(ImagesError, match="set statistics to analytic"):
        correct(student, NO_IMAGES, statistics="empirical")
    bare = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 10, 5))
    without = prepare(small.teacher_of(bare), "w8a8")
    with pytest.raises(UnsupportedModelError, match="--images DIR"):
        Calibrate(DATA_FREE).refine(without, NO_IMAGES)
    Calibrate(CalibrateConfig()).refine(without, small.images(4))
    with pytest.raises(UnsupportedModelError, match="only BatchNorm tells"):
        correct(without, NO_IMAGES)
    correct(without, small.images(9), statistics="empirical")
    assert keep_biases_in_int32(without) == {}


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="statistics must be one of analytic, empirical"):
        BiasCorrectionConfig(statistics="guessed")
    with pytest.raises(ValueError, match=r"most_images must be at least 1\. Got 0"):
        BiasCorrectionConfig(most_images=0)
    assert BiasCorrection(BiasCorrectionConfig()).needs_images() is False
    assert BiasCorrection(BiasCorrectionConfig(statistics="empirical")).needs_images() is True


def test_corrected_twice_analytically_is_corrected_once(small: Any) -> None:
    student = calibrated(small, small.Plain(), plan="every_layer")
    correct(student, small.images(1), statistics="analytic")
    once = {name: value.clone() for name, value in student.state_dict().items()}
    for one in (student, student.copy()):
        correct(one, small.images(1), statistics="analytic")
        for name, value in one.state_dict().items():
            torch.testing.assert_close(value, once[name], rtol=1e-6, atol=1e-6)
