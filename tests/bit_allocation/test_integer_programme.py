"""The integer programme against all choices tried one by one."""

import builtins
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emptyset.bit_allocation import integer_programme
from emptyset.bit_allocation.integer_programme import best_choice, lowest_cost
from emptyset.errors import MissingExtraError

Tables = tuple[list[list[float]], list[list[int]]]


def every_choice(damages: list[list[float]], costs: list[list[int]], limit: int) -> float:
    """Oracle: the least damage of all choices within the limit."""
    return min(
        sum(row[o] for row, o in zip(damages, choice, strict=True))
        for choice in itertools.product(*(range(len(row)) for row in costs))
        if sum(row[o] for row, o in zip(costs, choice, strict=True)) <= limit
    )


@st.composite
def tables(draw: Any) -> Tables:
    """1 to 5 layers of 1 to 4 options; damages over six orders of magnitude, ties too."""
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    damage = st.sampled_from([0.0, 1e-6, 1.0]) | st.floats(1e-6, 10.0)
    cost = st.integers(0, 40) | st.integers(10**6, 10**8)
    return (
        [draw(st.lists(damage, min_size=n, max_size=n)) for n in lengths],
        [draw(st.lists(cost, min_size=n, max_size=n)) for n in lengths],
    )


@given(tables(), st.floats(0, 1))
def test_the_choice_is_as_good_as_the_best_of_all(tables: Tables, share: float) -> None:
    damages, costs = tables
    least, most = lowest_cost(costs), sum(max(row) for row in costs)
    assert least == sum(min(row) for row in costs)
    limit = least + int(share * (most - least))
    chosen = best_choice(damages, costs, limit)
    assert sum(row[o] for row, o in zip(costs, chosen, strict=True)) <= limit
    found = sum(row[o] for row, o in zip(damages, chosen, strict=True))
    assert found == pytest.approx(every_choice(damages, costs, limit), rel=1e-6, abs=1e-9)


def by_dynamic_programming(damages: Any, costs: Any, limit: int) -> float:
    """Oracle for many layers: all sums of cost and damage that no other sum beats in both."""
    sums = [(0, 0.0)]
    for row, prices in zip(damages, costs, strict=True):
        options = list(zip(prices, row, strict=True))
        longer = sorted({(a + c, b + d) for a, b in sums for c, d in options})
        sums, best = [], float("inf")
        for cost, damage in longer:
            if cost <= limit and damage < best:
                sums.append((cost, damage))
                best = damage
    return min(damage for _, damage in sums)


@pytest.mark.parametrize("seed", range(6))
def test_twenty_layers_are_chosen_as_well_as_by_dynamic_programming(seed: int) -> None:
    drawn = np.random.default_rng(seed)
    bits = np.array([2, 3, 4, 8])
    noise = drawn.lognormal(0, 0.5, (20, 4))
    damages = (drawn.lognormal(-5, 2.5, (20, 1)) * 4.0**-bits * noise).tolist()
    counts = drawn.choice([144, 432, 2304, 4608, 9216, 18432, 36864, 777], (20, 1))
    costs = (counts * bits).tolist()
    limit = int(counts.sum() * drawn.uniform(2.1, 6.0))
    chosen = best_choice(damages, costs, limit)
    found = sum(row[o] for row, o in zip(damages, chosen, strict=True))
    assert found == pytest.approx(by_dynamic_programming(damages, costs, limit), rel=1e-7)


def test_an_option_that_costs_more_and_does_no_less_damage_is_never_chosen() -> None:
    damages, costs = [[1.0, 0.5, 0.5, 0.7]], [[1, 5, 4, 9]]
    assert best_choice(damages, costs, 100) == [2]
    assert best_choice(damages, costs, 3) == [0]


def test_without_any_choice_within_the_limit_it_refuses() -> None:
    with pytest.raises(ValueError, match="within the limit"):
        best_choice([[1.0, 0.5]], [[3, 4]], 2)


def test_a_choice_that_the_solver_lets_pass_by_its_tolerance_is_solved_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    solve = integer_programme._solve
    asked: list[int] = []

    def tolerant(damages: Any, costs: Any, limit: int, refused: Any) -> list[int]:
        asked.append(len(refused))
        # The first answer exceeds the limit by one.
        return [1, 1] if not refused else solve(damages, costs, limit, refused)

    monkeypatch.setattr(integer_programme, "_solve", tolerant)
    damages, costs = [[1.0, 0.1], [1.0, 0.2]], [[10, 21], [10, 20]]
    assert best_choice(damages, costs, 40) == [1, 0]
    assert asked == [0, 1]


def hard_tables() -> tuple[Any, Any, int]:
    """Makes HiGHS print a line of its debugging, unless it is kept from it."""
    drawn = np.random.default_rng(0)
    bits = np.array([2, 3, 4, 8])
    damages = drawn.lognormal(-3, 1.5, (120, 1)) * 4.0**-bits * drawn.lognormal(0, 0.3, (120, 4))
    costs = drawn.integers(400, 600_000, (120, 1)) * bits
    return damages.tolist(), costs.tolist(), int(costs.sum(0).mean())


def test_the_solver_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    damages, costs, middle = hard_tables()
    low = lowest_cost(costs)
    for step in range(6):
        limit = low + (middle - low) * step // 5
        chosen = best_choice(damages, costs, limit)
        assert sum(row[o] for row, o in zip(costs, chosen, strict=True)) <= limit
    print("what comes later is seen")
    assert capfd.readouterr().out == "what comes later is seen\n"


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match="mixed-precision"):
        best_choice([[1.0, 0.0], [1.0, 0.5]], [[1, 2], [1, 2]], 3)
