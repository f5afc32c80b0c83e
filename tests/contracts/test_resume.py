"""A synthesizer that was killed goes on and ends with the very same images."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from emptyset.monitor import State
from emptyset.registry import synthesizers
from emptyset.teachers.teacher import Teacher


class KilledError(Exception):
    pass


class Disk:
    """Keeps every state offered, and is killed after a number of them."""

    def __init__(self, limit: int | None) -> None:
        self.states: dict[str, State] = {}
        self.limit = limit
        self.kept = 0
        self.advanced = 0

    def advance(self, what: str, done: int, total: int, detail: str = "") -> None:
        assert 0 < done <= total
        self.advanced += 1

    def note(self, message: str) -> None:
        raise AssertionError(message)

    def keep(self, key: str, state: Callable[[], State], *, final: bool = False) -> None:
        if self.kept == self.limit:
            raise KilledError
        self.kept += 1
        # As a file would hold them: values only, no layout, nothing shared.
        self.states[key] = {name: v.clone().contiguous() for name, v in state().items()}

    def restore(self, key: str) -> State | None:
        return self.states.get(key)


def make(name: str, teacher: Teacher, disk: Disk) -> torch.Tensor:
    entry = synthesizers.get(name)
    made: Any = entry.make(entry.config.smallest())
    images: torch.Tensor = made.synthesize(teacher, 11, seed=5, monitor=disk).images
    return images


@pytest.mark.parametrize("name", synthesizers.names())
def test_killed_at_any_moment_it_ends_with_the_same_images(
    name: str, tiny_teacher: Teacher
) -> None:
    whole = Disk(None)
    expected = make(name, tiny_teacher, whole)
    for limit in range(whole.kept):
        disk = Disk(limit)
        with pytest.raises(KilledError):
            make(name, tiny_teacher, disk)
        before = disk.advanced
        disk.limit = None
        assert torch.equal(make(name, tiny_teacher, disk), expected)
        # It went on; it did not start again.
        assert disk.advanced - before <= whole.advanced - max(0, limit - 3)
