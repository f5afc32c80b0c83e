"""The best choice under a limit: a multiple-choice knapsack, solved as an integer programme.

    minimise    Σ_l Σ_o damage[l][o] · x[l][o]
    subject to  Σ_o x[l][o] = 1 for every layer l,  Σ_l Σ_o cost[l][o] · x[l][o] <= limit,
                x[l][o] in {0, 1}

Source: ours; HAWQ-V3 (Yao et al. 2021, arXiv:2011.10680) chooses bits by such a programme, with
    another measure of damage.
"""

import ctypes
import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from emptyset.errors import MissingExtraError

# The solver stops at an absolute gap of 1e-6, which scipy does not let us set.
LARGEST_DAMAGE = 1e4

Table = Sequence[Sequence[float]]
Costs = Sequence[Sequence[int]]


def best_choice(damages: Table, costs: Costs, limit: int) -> list[int]:
    """The option of every layer that together do least damage within the limit.

    Options that cost more than another one of the layer and do no less damage are never chosen.

    Args:
        damages: Per layer and option, finite.
        costs: Per layer and option, whole numbers, shaped as ``damages``.
        limit: The largest sum of costs; at least the sum of every layer's smallest.

    Returns:
        Index of the chosen option, per layer.

    Raises:
        ValueError: If no choice is within the limit.
        MissingExtraError: If scipy is not installed.
    """
    kept = [_undominated(d, c) for d, c in zip(damages, costs, strict=True)]
    if sum(costs[layer][options[0]] for layer, options in enumerate(kept)) > limit:
        raise ValueError("No choice is within the limit.")
    best = [options[-1] for options in kept]
    if sum(costs[layer][option] for layer, option in enumerate(best)) <= limit:
        return best
    refused: list[list[int]] = []
    while True:
        chosen = _solve(
            [[damages[layer][o] for o in options] for layer, options in enumerate(kept)],
            [[costs[layer][o] for o in options] for layer, options in enumerate(kept)],
            limit,
            refused,
        )
        found = [options[o] for options, o in zip(kept, chosen, strict=True)]
        if sum(costs[layer][option] for layer, option in enumerate(found)) <= limit:
            return found
        # The solver allows itself a tolerance; the limit is exact.
        refused.append(chosen)


def lowest_cost(costs: Costs) -> int:
    """The least that any choice costs."""
    return sum(min(options) for options in costs)


def _undominated(damages: Sequence[float], costs: Sequence[int]) -> list[int]:
    """Options by rising cost, each with less damage than all cheaper ones."""
    found: list[int] = []
    for option in sorted(range(len(costs)), key=lambda o: (costs[o], damages[o])):
        if not found or damages[option] < damages[found[-1]]:
            found.append(option)
    return found


def _solve(damages: Table, costs: Costs, limit: int, refused: list[list[int]]) -> list[int]:
    try:
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array
    except ImportError as error:
        raise MissingExtraError(
            'Mixed precision needs scipy. Install it: pip install "emptyset[mixed-precision]".'
        ) from error
    counts = [len(options) for options in costs]
    starts = np.cumsum([0, *counts])
    layer_of = np.repeat(np.arange(len(counts)), counts)
    damage = np.concatenate([np.asarray(d, dtype=float) - min(d) for d in damages])
    cost = np.concatenate([np.asarray(c, dtype=float) for c in costs])
    one_each = csr_array((np.ones(len(cost)), (layer_of, np.arange(len(cost)))))
    largest = cost.max()
    constraints = [
        LinearConstraint(one_each, 1, 1),
        LinearConstraint(cost[None] / largest, -np.inf, limit / largest),
    ]
    for choice in refused:
        row = np.zeros((1, len(cost)))
        row[0, starts[:-1] + choice] = 1
        constraints.append(LinearConstraint(row, -np.inf, len(counts) - 1))
    with _quiet_solver():
        result = milp(
            damage * (LARGEST_DAMAGE / damage.max()),
            integrality=np.ones(len(cost)),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": 0.0},
        )
    if result.status != 0:
        raise RuntimeError(f"The integer programme was not solved: {result.message}")
    return [int(result.x[a:b].argmax()) for a, b in itertools.pairwise(starts)]


@contextmanager
def _quiet_solver() -> Iterator[None]:
    """Inside, what C code prints to stdout is dropped.

    HiGHS prints a line of its own debugging past every option (seen in scipy 1.17), and stdout
    belongs to the results of a command.
    """
    try:
        library = ctypes.CDLL(None)
        kept = os.dup(1)
    except (OSError, TypeError):  # no C library to ask (Windows), or stdout is closed
        yield
        return
    library.fflush(None)
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        library.fflush(None)
        os.dup2(kept, 1)
        with suppress(OSError):
            os.close(kept)
