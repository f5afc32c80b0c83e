"""A small residual network, its calibrated student, and a disk that a run can be killed at."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.graph.student import Student, prepare
from emptyset.images.image_set import ImageSet
from emptyset.monitor import State
from emptyset.refiners.calibrate import Calibrate, CalibrateConfig
from emptyset.teachers.teacher import InputSpec, Teacher, hash_of_weights

SHAPE = (3, 8, 10)


class Residual(nn.Module):
    """Stem, three residual blocks (the last with the mean behind it), head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.units = nn.ModuleList([Body(), Body(), Body()])
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        for unit in self.units:
            x = F.relu(x + unit(x))
        return self.linear(x.mean((2, 3)))


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(6, 7, 3, padding=1, bias=False), nn.BatchNorm2d(7)
        self.conv2, self.norm2 = nn.Conv2d(7, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))


def build(module: nn.Module, shape: tuple[int, int, int] = SHAPE) -> Teacher:
    """Frozen, in eval mode, with weights and statistics of its own."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in module.named_parameters():
            drawn = torch.randn(value.shape, generator=generator)
            value.copy_(1.0 + 0.2 * drawn if "norm" in name and "weight" in name else 0.3 * drawn)
        for name, value in module.named_buffers():
            if "running" in name:
                value.copy_(value + 0.2 * torch.rand(value.shape, generator=generator))
    module.requires_grad_(False).eval()
    spec = InputSpec(shape, (0.5,) * shape[0], (0.25,) * shape[0])
    return Teacher("test", module, spec, weights_hash=hash_of_weights(module))


@pytest.fixture
def teacher_of() -> Callable[..., Teacher]:
    return build


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Networks draw their first weights the same in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def teacher() -> Teacher:
    return build(Residual())


@pytest.fixture
def images() -> ImageSet:
    """Pixels of an image are alike: of independent ones nearest rounding is nearly the best."""
    generator = torch.Generator().manual_seed(1)
    levels = torch.randn(22, 3, 1, 1, generator=generator)
    return ImageSet(levels + 0.5 * torch.randn(22, *SHAPE, generator=generator))


# Capturing takes most of a small test's time, so equal students are made once and copied.
_MADE: dict[tuple[str, ...], Student] = {}


@pytest.fixture
def student_of(images: ImageSet) -> Callable[..., Student]:
    def make(
        teacher: Teacher, bits: str = "w3a3", plan: str = "edges_8bit", **more: Any
    ) -> Student:
        key = (hash_of_weights(teacher.module), bits, plan, repr(more))
        if key not in _MADE:
            student = prepare(teacher, bits, plan=plan, **more)
            shape = teacher.input.shape
            drawn = images if shape == SHAPE else ImageSet(torch.randn(9, *shape))
            Calibrate(CalibrateConfig()).refine(student, drawn)
            _MADE[key] = student
        return _MADE[key].copy()

    return make


class KilledError(Exception):
    pass


class Disk:
    """Keeps every state as a file would, notes what it hears, and is killed after some states."""

    def __init__(self, limit: int | None = None) -> None:
        self.states: dict[str, State] = {}
        self.limit, self.kept = limit, 0
        self.advanced: list[tuple[str, int, int]] = []
        self.notes: list[str] = []

    def advance(self, what: str, done: int, total: int, detail: str = "") -> None:
        assert 0 < done <= total
        self.advanced.append((what, done, total))

    def note(self, message: str) -> None:
        self.notes.append(message)

    def keep(self, key: str, state: Callable[[], State], *, final: bool = False) -> None:
        if self.kept == self.limit:
            raise KilledError
        self.kept += 1
        self.states[key] = {name: v.detach().clone().contiguous() for name, v in state().items()}

    def restore(self, key: str) -> State | None:
        kept = self.states.get(key)
        return None if kept is None else {name: value.clone() for name, value in kept.items()}


@pytest.fixture
def disk() -> type[Disk]:
    return Disk


@pytest.fixture
def killed() -> type[KilledError]:
    return KilledError
