"""Checks of settings that many methods share; each message names setting and value."""

from collections.abc import Iterable, Sequence
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


def require_use_of_classes(config: Any) -> None:
    """Refuse classes that are named where images are made for none.

    Args:
        config: With ``classes``; its ``class_weights`` name the weights of all that asks for them.

    Raises:
        ValueError: Naming the weights that are 0.
    """
    weights = config.class_weights
    if config.classes and not any(getattr(config, weight) for weight in weights):
        are = "is" if len(weights) == 1 else "are"
        raise ValueError(
            f"'classes' are {list(config.classes)}, but {_quoted(weights)} {are} 0, so images are "
            f"made for no class. Set {_quoted(weights, ' or ')}, or leave 'classes' out."
        )


def require_an_aim(config: Any, *weights: str) -> None:
    """Refuse settings with which nothing of the teacher reaches the images.

    Raises:
        ValueError: Naming the weights, all of which are 0.
    """
    if not any(getattr(config, weight) for weight in weights):
        both = "both" if len(weights) == 2 else "all"
        raise ValueError(f"{_quoted(weights)} are {both} 0: nothing to learn. Set one of them.")


def _quoted(names: Sequence[str], last: str = " and ") -> str:
    """``'a', 'b' and 'c'``."""
    quoted = [f"'{name}'" for name in names]
    return last.join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)
