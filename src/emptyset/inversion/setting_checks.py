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


def require_use_of_classes(config: Any, weight: str) -> None:
    """Refuse classes that are named where images are made for none.

    Raises:
        ValueError: Naming the weight that is 0.
    """
    if config.classes and not getattr(config, weight):
        raise ValueError(
            f"'classes' are {list(config.classes)}, but '{weight}' is 0, so images are made for "
            f"no class. Set '{weight}', or leave 'classes' out."
        )
