"""Checks of settings that many methods share; each message names setting and value."""

from collections.abc import Iterable
from typing import Any


def require_positive(config: Any, *names: str) -> None:
    """Refuse values of 0 and below, and NaN.

    Raises:
        ValueError: Naming the setting.
    """
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"'{name}' must be positive. Got {getattr(config, name)}.")


def require_not_negative(config: Any, *names: str) -> None:
    """Refuse values below 0, and NaN.

    Raises:
        ValueError: Naming the setting.
    """
    for name in names:
        if not getattr(config, name) >= 0:
            raise ValueError(f"'{name}' must not be negative. Got {getattr(config, name)}.")


def require_share(config: Any, *names: str) -> None:
    """Refuse values outside 0..1.

    Raises:
        ValueError: Naming the setting.
    """
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"'{name}' must lie in 0..1. Got {getattr(config, name)}.")


def require_choice(config: Any, name: str, known: Iterable[str]) -> None:
    """Refuse a text that is none of the known ones.

    Raises:
        ValueError: Naming the setting and what is known.
    """
    known = tuple(known)
    if getattr(config, name) not in known:
        raise ValueError(
            f"'{name}' must be one of {', '.join(known)}. Got '{getattr(config, name)}'."
        )


def require_low_pass(config: Any) -> None:
    """Refuse a cut-off that filters everything.

    Raises:
        ValueError: If ``low_pass`` is neither None nor positive.
    """
    if config.low_pass is not None:
        require_positive(config, "low_pass")
