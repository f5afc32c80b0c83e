"""Distance ratio and intrusion: on a parabola whose every number can be worked out by hand."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from emptyset.errors import ImagesError, RecipeError, UnsupportedModelError
from emptyset.evaluate.class_boundary import (
    BoundarySettings,
    chosen_pairs,
    class_boundary,
    distance_ratio,
    intrusion,
    mixup_sweep,
)
from emptyset.monitor import SilentMonitor, State
from emptyset.teachers.teacher import Teacher

Point = tuple[float, float]


def length(points: list[Point]) -> float:
    return sum(math.dist(a, b) for a, b in itertools.pairwise(points))


def outside(point: Point, pair: tuple[int, int]) -> float:
    """Softmax of the toy's logits, written out."""
    x, y = point
    powers = [math.exp(x * (c + 1) - y * c) for c in range(3)]
    return sum(p for c, p in enumerate(powers) if c not in pair) / sum(powers)


def by_hand(first: float, second: float, pair: tuple[int, int], steps: int) -> list[float]:
    shares = [t / steps for t in range(steps + 1)]
    middles = [(1 - s) * first + s * second for s in shares]
    way = [(x, x * x) for x in middles]
    straight = [
        (x, (1 - s) * first**2 + s * second**2) for x, s in zip(middles, shares, strict=True)
    ]
    found = []
    for points in (way, straight):
        found.append(length(points) / math.dist(points[0], points[-1]))
        found.append(sum(outside(point, pair) for point in points) / len(points))
    return found


def test_every_number_of_a_parabola_is_the_one_worked_out_by_hand(
    toy: Callable[..., Any], teacher: Teacher
) -> None:
    found = class_boundary(toy(), teacher, BoundarySettings(steps=7), batch_size=3)
    expected = [
        by_hand(0.0, 1.0, (0, 1), 7), by_hand(0.0, 3.0, (0, 2), 7), by_hand(1.0, 3.0, (1, 2), 7),
    ]  # fmt: skip
    columns = torch.tensor(expected, dtype=torch.double)
    got = [found.superposed.ratio, found.superposed.intrusion]
    got += [found.mixup.ratio, found.mixup.intrusion]
    assert got == pytest.approx(columns.mean(dim=0).tolist(), rel=1e-5)
    spreads = [found.superposed.ratio_spread, found.superposed.intrusion_spread]
    assert spreads == pytest.approx(columns[:, :2].std(dim=0).tolist(), rel=1e-4)
    # Pixels of the toy are its features, so Mixup goes straight.
    assert found.mixup.ratio == pytest.approx(1.0, rel=1e-6)
    assert (found.pairs, found.of_pairs, found.without_distance) == (3, 3, 0)
    assert (found.noise, found.features, found.steps) == ("zero", "penultimate", 7)
    assert found.to_json()["superposed"]["ratio"] == found.superposed.ratio


def test_a_half_circle_is_half_pi_times_as_long_as_its_diameter() -> None:
    angle = torch.linspace(0, math.pi, 20001, dtype=torch.double)
    circle = torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], dim=1)
    assert distance_ratio(circle).item() == pytest.approx(math.pi / 2, rel=1e-8)
    assert distance_ratio(circle[[0, -1]]).item() == pytest.approx(1.0, rel=1e-12)
    assert math.isnan(distance_ratio(torch.zeros(4, 3)).item())


def test_intrusion_counts_the_classes_outside_the_pair() -> None:
    shares = torch.tensor([[0.5, 0.2, 0.25, 0.05], [0.1, 0.1, 0.2, 0.6]], dtype=torch.double)
    assert intrusion(shares.log(), (0, 2)).item() == pytest.approx((0.25 + 0.7) / 2)
    assert intrusion(shares[:, :2].log(), (0, 1)).item() == 0.0


def test_mixup_mixes_the_ends_pixel_by_pixel() -> None:
    sweep = torch.rand(5, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    mixed = mixup_sweep(sweep)
    for t in range(5):
        torch.testing.assert_close(mixed[t], (4 - t) / 4 * sweep[0] + t / 4 * sweep[4])


def test_with_drawn_noise_all_images_of_a_sweep_share_one(
    toy: Callable[..., Any], teacher: Teacher
) -> None:
    settings = BoundarySettings(steps=9, noise="drawn", draws=2)
    found = class_boundary(toy((0.0, 1.0, 2.0)), teacher, settings, seed=4)
    assert (found.noise, found.draws) == ("drawn", 2)
    # One noise moves the way along the parabola; noise of its own for every image would make it
    # jump to and fro.
    assert 1.0 <= found.superposed.ratio < 1.5
    assert found.superposed.ratio != class_boundary(toy((0.0, 1.0, 2.0)), teacher).superposed.ratio
    again = class_boundary(toy((0.0, 1.0, 2.0)), teacher, settings, seed=4)
    assert again == found
    other = class_boundary(toy((0.0, 1.0, 2.0)), teacher, settings, seed=5)
    assert other.superposed != found.superposed


def test_several_draws_are_the_mean_of_sweeps_with_noise_of_their_own(
    toy: Callable[..., Any], teacher: Teacher
) -> None:
    source, sweeps = toy((0.0, 1.0, 3.0)), []
    source.generator.condition.register_forward_hook(
        lambda _module, _given, latents: sweeps.append(latents.flatten().tolist())
    )
    settings = BoundarySettings(steps=6, noise="drawn", draws=2)
    found = class_boundary(source, teacher, settings, seed=4)
    pairs = {(0, 1): (0.0, 1.0), (0, 2): (0.0, 3.0), (1, 2): (1.0, 3.0)}
    assert [len(sweep) for sweep in sweeps] == [7] * 6
    noises, rows = [], []
    for number, (pair, (first, second)) in enumerate(pairs.items()):
        for sweep in sweeps[2 * number : 2 * number + 2]:
            noises.append(sweep[0] - first)
            assert sweep[-1] - second == pytest.approx(noises[-1], abs=1e-6)
            rows.append(by_hand(sweep[0], sweep[-1], pair, 6))
    assert len({round(noise, 4) for noise in noises}) == 6
    columns = torch.tensor(rows, dtype=torch.double).view(3, 2, 4).mean(dim=1)
    got = [found.superposed.ratio, found.superposed.intrusion]
    got += [found.mixup.ratio, found.mixup.intrusion]
    assert got == pytest.approx(columns.mean(dim=0).tolist(), rel=1e-4)
    spreads = [found.superposed.ratio_spread, found.superposed.intrusion_spread]
    assert spreads == pytest.approx(columns[:, :2].std(dim=0).tolist(), rel=1e-3)


@pytest.mark.parametrize("condition", ["scaled", "per_slot"])
def test_the_kind_of_noise_follows_what_the_generator_does_with_it(
    toy: Callable[..., Any], teacher: Teacher, condition: str
) -> None:
    source = toy((-2.0, 1.0, 3.0), condition=condition)
    if condition == "per_slot":
        # Normalised alone, an embedding of one value is always 0.
        with pytest.raises(ImagesError, match="look the same"):
            class_boundary(source, teacher, BoundarySettings(steps=2))
        return
    found = class_boundary(source, teacher, BoundarySettings(steps=2))
    assert found.noise == "drawn"
    assert found.superposed.ratio >= 1.0
    with pytest.raises(RecipeError, match="noise: without any"):
        class_boundary(source, teacher, BoundarySettings(noise="zero"))


def test_a_generator_without_labels_is_refused(toy: Callable[..., Any], teacher: Teacher) -> None:
    with pytest.raises(UnsupportedModelError, match="makes images without labels"):
        class_boundary(toy(condition="noise", labelled=False), teacher)


def test_classes_that_look_the_same_are_left_out_and_counted(
    toy: Callable[..., Any], teacher: Teacher
) -> None:
    found = class_boundary(toy((1.0, 1.0, 2.0)), teacher, BoundarySettings(steps=3))
    assert (found.pairs, found.without_distance) == (3, 1)
    expected = by_hand(1.0, 2.0, (0, 2), 3)[0]
    assert found.superposed.ratio == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ImagesError, match="collapsed"):
        class_boundary(toy((1.0, 1.0, 1.0)), teacher, BoundarySettings(steps=3))


def test_two_classes_are_one_pair_that_nothing_intrudes_into(
    toy: Callable[..., Any], make_teacher: Callable[[int], Teacher]
) -> None:
    two = make_teacher(2)
    found = class_boundary(toy((0.0, 2.0), of=two), two, BoundarySettings(steps=3))
    assert (found.pairs, found.of_pairs) == (1, 1)
    assert found.superposed.intrusion == 0.0
    assert found.superposed.ratio_spread is None


def test_a_diverged_generator_is_named(toy: Callable[..., Any], teacher: Teacher) -> None:
    with pytest.raises(ImagesError, match="Between the classes 0 and 1"):
        class_boundary(toy((0.0, math.nan, 3.0)), teacher)


def test_pairs_are_all_or_drawn_with_the_seed() -> None:
    every = chosen_pairs(5, None, seed=0).tolist()
    assert every == [[a, b] for a in range(5) for b in range(a + 1, 5)]
    assert chosen_pairs(5, 10, seed=7).tolist() == every
    some = chosen_pairs(5, 4, seed=7).tolist()
    assert len(some) == 4
    assert some == sorted(some)
    assert all(pair in every for pair in some)
    assert some == chosen_pairs(5, 4, seed=7).tolist()
    assert some != chosen_pairs(5, 4, seed=8).tolist()


@pytest.mark.parametrize(
    "wrong", [{"pairs": 0}, {"steps": 0}, {"draws": 0}, {"noise": "some"}], ids=str
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        BoundarySettings(**wrong)


class Killed(SilentMonitor):
    """Keeps states, and ends the work after some of them."""

    def __init__(self, states: dict[str, State], after: int) -> None:
        self.states, self.left = states, after

    def keep(self, key: str, state: Any, *, final: bool = False) -> None:
        self.states[key] = {name: value.clone() for name, value in state().items()}
        self.left -= 1
        if not self.left:
            raise StopIteration

    def restore(self, key: str) -> State | None:
        return self.states.get(key)


def test_a_killed_measurement_goes_on_to_the_same_result(
    toy: Callable[..., Any], teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = BoundarySettings(steps=4)
    whole = class_boundary(toy(), teacher, settings)
    states: dict[str, State] = {}
    with pytest.raises(StopIteration):
        class_boundary(toy(), teacher, settings, monitor=Killed(states, 2))
    swept: list[Tensor] = []
    import emptyset.evaluate.class_boundary as module

    original = module.mixup_sweep
    monkeypatch.setattr(module, "mixup_sweep", lambda way: swept.append(way) or original(way))
    assert class_boundary(toy(), teacher, settings, monitor=Killed(states, 99)) == whole
    assert len(swept) == 1


def test_the_generator_and_the_teacher_stay_as_they_were(
    toy: Callable[..., Any], teacher: Teacher
) -> None:
    source = toy()
    before = {name: value.clone() for name, value in source.state().items()}
    random = torch.get_rng_state()
    class_boundary(source, teacher, BoundarySettings(steps=2))
    assert source.generator.training
    assert all(torch.equal(value, before[name]) for name, value in source.state().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(m._forward_pre_hooks for m in teacher.module.modules())
