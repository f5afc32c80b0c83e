"""When images are harvested during one optimisation."""


def evenly_spaced(steps: int, burn_in: float, count: int) -> tuple[int, ...]:
    """Numbers of steps after which images are taken; the last one is the end.

        s_k = round(b + (steps − b) · k / count),  k = 1..count,  b = burn_in · steps

    Args:
        steps: Steps of the optimisation.
        burn_in: Share of the steps before which nothing is taken, 0 up to below 1.
        count: Harvests.

    Raises:
        ValueError: If there are fewer steps after the burn-in than harvests.
    """
    begin = burn_in * steps
    found = tuple(round(begin + (steps - begin) * k / count) for k in range(1, count + 1))
    if len(set(found)) < count or found[0] < 1:
        raise ValueError(
            f"'snapshots' must be at most the steps after the burn-in, {int(steps - begin)}. Got "
            f"{count}."
        )
    return found
