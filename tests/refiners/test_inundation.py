"""Inundation makes the intended share of codes change: counted by other means than it computes."""

import itertools
import math
import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_teachers import two_convolutions
from torch import Tensor, nn

from emptyset.graph.student import Student, prepare
from emptyset.images.image_set import ImageSet
from emptyset.images.image_source import StoredImages
from emptyset.quantizers.bits import Bits
from emptyset.refiners.calibrate import Calibrate, CalibrateConfig
from emptyset.refiners.distill import DistillConfig
from emptyset.refiners.inundation import TOLERANCE, Inundation, quantile, update_of
from emptyset.refiners.learners import Learners
from emptyset.refiners.training import Training
from emptyset.teachers.teacher import Teacher

RATE = 1e-3


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return two_convolutions((12, 14), means=0.0, equal_norms=False)


@pytest.fixture(scope="module")
def images(teacher: Teacher) -> ImageSet:
    pixels = torch.randn(30, 3, 8, 12, generator=torch.Generator().manual_seed(1))
    return ImageSet(pixels, teacher.module(pixels).argmax(1))


@pytest.fixture(scope="module")
def prepared(teacher: Teacher, images: ImageSet) -> Student:
    student = prepare(teacher, "w4a4", plan="every_layer", batch_norm="frozen")
    Calibrate(CalibrateConfig()).refine(student, images)
    return student


def codes_on_own_grid(weight: Tensor, *, from_zero: bool = True, bits: int = 4) -> Tensor:
    """The family's rule in double: per output channel, from the smallest to the largest value."""
    flat = weight.double().flatten(1)
    low, high = flat.amin(1, keepdim=True).clamp(max=0), flat.amax(1, keepdim=True).clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    zero = (-low / scale).round()
    codes = ((flat / scale).round() + zero).clamp(0, 2**bits - 1)
    return (codes - zero if from_zero else codes).view_as(weight)


def codes_on_grid(weight: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    shape = (-1, *[1] * (weight.dim() - 1))
    codes = (weight.double() / scale.double().view(shape)).round() + zero_point.view(shape)
    return codes.clamp(low, high)


WEIGHTS = ("conv1.weight", "conv2.weight", "linear.weight")


class Trained:
    """A student in training whose every update is looked at from outside."""

    def __init__(self, student: Student, images: ImageSet, **settings: Any) -> None:
        given = {"preset": "ait", "steps": 40, "warm_up": 0.0, "batch_size": 10, **settings}
        given = {"learning_rate": RATE, "precision": "float32", "held_out": 0, **given}
        config = DistillConfig(**given)
        course = replace(config.course(Bits.parse("w4a4")), warm_up=0, range_steps=0)
        self.student = student.copy()
        self.training = Training(self.student, StoredImages(images, seed=0), course, 0)
        self.before: list[dict[str, Tensor]] = []
        self.after: list[dict[str, Tensor]] = []
        self.grids: list[dict[str, tuple[Tensor, Tensor, int, int]]] = []

    def run(self, updates: int) -> None:
        quantizers = self.student.quantizers
        with self.training._learning():
            for learner in self.training._learners._learners.values():
                learner.tracking = True  # the first batch sets the ranges that all others keep
            with torch.no_grad():
                self.student(self.training._source.next_batch(10).images)
            for number in range(updates):
                self.before.append(self._weights())
                self.grids.append(
                    {
                        name: (q.scale.clone(), q.zero_point.clone(), q.quant_min, q.quant_max)
                        for name, q in quantizers.items()
                    }
                )
                self.training._update(number)
                self.after.append(self._weights())

    def _weights(self) -> dict[str, Tensor]:
        return {name: self.training._parameters[name].detach().clone() for name in WEIGHTS}


@pytest.mark.parametrize("crossing", [0.01, 0.07])
def test_in_one_pass_the_share_asked_for_changes_on_the_grid_as_it_is(
    crossing: float, prepared: Student, images: ImageSet
) -> None:
    trained = Trained(prepared, images, crossing=crossing, inundation_cap=1e12)
    trained.run(6)
    for before, after, grid in zip(trained.before, trained.after, trained.grids, strict=True):
        for name in WEIGHTS:
            old, new = (codes_on_grid(x[name], *grid[name]) for x in (before, after))
            count, wanted = int((old != new).sum()), math.ceil(crossing * old.numel() - 1e-9)
            # Another weight may lie between its border and what is added for rounding's sake.
            assert wanted <= count <= wanted + 1, name


@pytest.mark.parametrize(("crossing", "legacy"), [(0.02, False), (0.07, False), (0.02, True)])
def test_the_search_ends_where_the_share_changes_on_the_grid_that_follows(
    crossing: float, legacy: bool, prepared: Student, images: ImageSet
) -> None:
    trained = Trained(
        prepared,
        images,
        crossing=crossing,
        inundation_cap=1e12,
        inundation="exact",
        legacy=legacy,
    )
    trained.run(4)
    shares: dict[str, list[float]] = {name: [] for name in WEIGHTS}
    for before, after in zip(trained.before, trained.after, strict=True):
        for name in WEIGHTS:
            old, new = (codes_on_own_grid(x[name], from_zero=not legacy) for x in (before, after))
            share = float((old != new).double().mean())
            assert share >= (1 - TOLERANCE) * crossing - 1 / old.numel(), name
            shares[name].append(share)
    if legacy:
        # A zero point that moves changes a channel of 14 at once, more than was asked for.
        assert max(shares["conv2.weight"]) > 0.06
    else:
        assert statistics.median(shares["conv2.weight"]) < 1.3 * crossing


def test_without_it_hardly_any_code_changes(prepared: Student, images: ImageSet) -> None:
    trained = Trained(prepared, images, inundation="none")
    trained.run(4)
    changed = [
        (codes_on_own_grid(before[name]) != codes_on_own_grid(after[name])).double().mean()
        for before, after in zip(trained.before, trained.after, strict=True)
        for name in WEIGHTS
    ]
    assert max(changed) < 0.005


@pytest.mark.parametrize("inundation", ["quantile", "exact"])
def test_no_update_is_enlarged_beyond_the_cap(
    inundation: str, prepared: Student, images: ImageSet
) -> None:
    plain = Trained(prepared, images, inundation="none")
    capped = Trained(prepared, images, inundation=inundation, crossing=0.2, inundation_cap=3.0)
    for each in (plain, capped):
        each.run(1)
    for name in WEIGHTS:
        (own,) = (after[name] - before[name] for before, after in pairs(plain))
        (three,) = (after[name] - before[name] for before, after in pairs(capped))
        # In float32 a weight of 1 keeps 1.2e-7 of what is added to it.
        torch.testing.assert_close(three, 3 * own, atol=4e-7, rtol=1e-3)


@pytest.mark.parametrize("inundation", ["quantile", "exact"])
def test_an_update_that_changes_enough_by_itself_stays_as_it_is(
    inundation: str, prepared: Student, images: ImageSet
) -> None:
    large: dict[str, Any] = {"learning_rate": 100.0}
    plain = Trained(prepared, images, inundation="none", **large)
    satisfied = Trained(prepared, images, inundation=inundation, crossing=1e-9, **large)
    for each in (plain, satisfied):
        each.run(1)
    for name in WEIGHTS:
        assert not torch.equal(plain.after[0][name], plain.before[0][name])
        torch.testing.assert_close(satisfied.after[0][name], plain.after[0][name])


def pairs(trained: Trained) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    return list(zip(trained.before, trained.after, strict=True))


def test_all_weights_of_a_tensor_move_by_one_factor_and_nothing_else_does(
    prepared: Student, images: ImageSet
) -> None:
    plain = Trained(prepared, images, inundation="none")
    inundated = Trained(prepared, images, crossing=0.05, inundation_cap=1e12)
    plain.run(1)
    inundated.run(1)
    for name in WEIGHTS:
        (own,) = (after[name] - before[name] for before, after in pairs(plain))
        (large,) = (after[name] - before[name] for before, after in pairs(inundated))
        chosen = own.abs() > 0.2 * own.abs().max()
        factors = large[chosen] / own[chosen]
        assert float(factors.min()) > 1
        assert float(factors.max() / factors.min()) < 1.1
    for name, value in plain.training._parameters.items():
        if name not in WEIGHTS:
            torch.testing.assert_close(inundated.training._parameters[name], value)


def test_the_share_falls_with_the_learning_rate(prepared: Student, images: ImageSet) -> None:
    trained = Trained(
        prepared, images, crossing=0.2, inundation_cap=1e12, milestones=(0.25,), steps=8
    )
    trained.run(4)
    counts = []
    for before, after, grid in zip(trained.before, trained.after, trained.grids, strict=True):
        old, new = (
            codes_on_grid(x["conv2.weight"], *grid["conv2.weight"]) for x in (before, after)
        )
        counts.append(float((old != new).double().mean()))
    assert counts[:2] == pytest.approx([0.2, 0.2], abs=0.002)
    assert counts[2:] == pytest.approx([0.02, 0.02], abs=0.002)


@pytest.mark.parametrize("inundation", ["quantile", "exact"])
def test_it_enlarges_adams_updates_of_the_learned_preset_too(
    inundation: str, prepared: Student, images: ImageSet
) -> None:
    settings: dict[str, Any] = {"preset": "learned", "augmentation": "none"}
    trained = Trained(
        prepared, images, **settings, inundation=inundation, crossing=0.05, inundation_cap=1e12
    )
    trained.run(2)
    for before, after, grid in zip(trained.before, trained.after, trained.grids, strict=True):
        for name in WEIGHTS:
            old, new = (codes_on_grid(x[name], *grid[name]) for x in (before, after))
            share = float((old != new).double().mean())
            most = 0.05 if inundation == "quantile" else 0.1
            assert share + 1 / old.numel() >= 0.05 * 0.95 * 0.99, name
            assert share <= most + 3 / old.numel(), name


def test_a_gradient_of_zero_ends_and_changes_nothing(prepared: Student) -> None:
    for inundation in ("quantile", "exact"):
        student = prepared.copy()
        config = DistillConfig(preset="ait", inundation=inundation)
        course = config.course(Bits.parse("w4a4"))
        Learners(student, course)
        parameters = dict(student.program.named_parameters())
        optimizer = torch.optim.SGD(
            [parameters[name].requires_grad_() for name in WEIGHTS], lr=1.0, momentum=0.9
        )
        before = {name: parameters[name].detach().clone() for name in WEIGHTS}
        for name in WEIGHTS:
            parameters[name].grad = torch.zeros_like(parameters[name])
        with Inundation(student, optimizer, course).around(1.0):
            optimizer.step()
        for name in WEIGHTS:
            assert torch.equal(parameters[name].detach(), before[name])


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.Adam, {"weight_decay": 0.01, "betas": (0.8, 0.95)}),
    ],
)
def test_an_update_read_from_the_optimizer_is_what_it_did(kind: Any, settings: Any) -> None:
    random = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(4, 7, generator=random, dtype=torch.double))
    other = nn.Parameter(torch.zeros(3, dtype=torch.double))
    optimizer = kind([parameter, other], lr=0.03, **settings)
    for _ in range(3):
        before = parameter.detach().clone()
        parameter.grad = torch.randn(4, 7, generator=random, dtype=torch.double)
        optimizer.step()
        expected = parameter.detach() - before
        torch.testing.assert_close(update_of(optimizer, parameter, before), expected)
    assert float(update_of(optimizer, other, other.detach()).abs().sum()) == 0.0


def test_an_update_too_small_for_float32_is_not_lost(prepared: Student) -> None:
    parameter = nn.Parameter(torch.full((5, 3), 0.3))
    optimizer = torch.optim.SGD([parameter], lr=1e-9, momentum=0.9, nesterov=True)
    before = parameter.detach().clone()
    parameter.grad = torch.full((5, 3), 0.01)
    optimizer.step()
    assert torch.equal(parameter.detach(), before)
    expected = torch.full((5, 3), -1.9e-11)
    torch.testing.assert_close(update_of(optimizer, parameter, before), expected)


def test_the_quantile_is_the_smallest_value_that_enough_do_not_exceed() -> None:
    values = torch.tensor([[5.0, 1.0, math.inf], [3.0, 2.0, 4.0]])
    ordered = sorted(values.flatten().tolist())
    for share in (1e-6, 1 / 6, 0.3, 0.5, 4 / 6, 1.0):
        enough = (v for v in ordered if sum(o <= v for o in ordered) >= share * 6 - 1e-9)
        assert quantile(values, share).item() == next(enough)
    # 0.07 · 100 is a little more than 7 in floating point.
    assert quantile(torch.arange(100.0), 0.07).item() == 6.0


def test_settings_are_the_papers() -> None:
    course = DistillConfig(preset="ait").course(Bits.parse("w4a4"))
    assert (course.steps, course.warm_up, course.weight_decay) == (80_000, 800, 0.0)
    assert (course.cross_entropy, course.distillation, course.kd_reduction) == (0.0, 1.0, "mean")
    assert (course.inundation, course.crossing, course.inundation_cap) == ("quantile", 1e-3, 1e6)
    rates = [course.share_of_rate(n) for n in (19_999, 20_000, 40_000, 60_000)]
    assert rates == pytest.approx([1, 0.1, 0.01, 0.001])
    assert all(a >= b for a, b in itertools.pairwise(rates))
    assert DistillConfig().course(Bits.parse("w4a4")).inundation == "none"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inundation": "flood"}, "inundation must be one of none, quantile, exact"),
        ({"crossing": 0.0}, "crossing is a share"),
        ({"crossing": 1.5}, "crossing is a share"),
        ({"inundation_cap": 0.5}, "inundation_cap must be at least 1"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillConfig(**settings)
