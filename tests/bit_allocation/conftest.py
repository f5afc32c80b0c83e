"""Small networks whose every layer can be computed by hand."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.images.image_set import ImageSet
from emptyset.monitor import State
from emptyset.teachers.teacher import InputSpec, Teacher

SHAPE = (3, 8, 10)


class FourLayers(nn.Module):
    """Three convolutions and a linear; plan `every_layer` leaves all of them free."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 7, 3, stride=2)
        self.c, self.d = nn.Conv2d(7, 9, (1, 2)), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = F.relu(self.b(x))
        return self.d(F.relu(self.c(x)).mean((2, 3)))


class KilledError(Exception):
    pass


class Disk:
    """Keeps every state offered, and is killed after a number of them."""

    Killed = KilledError

    def __init__(self, limit: int | None = None) -> None:
        self.states: dict[str, State] = {}
        self.limit = limit
        self.kept = 0
        self.said: list[str] = []
        self.noted: list[str] = []

    def advance(self, what: str, done: int, total: int, detail: str = "") -> None:
        assert 0 < done <= total
        self.said.append(what)

    def note(self, message: str) -> None:
        self.noted.append(message)

    def keep(self, key: str, state: Callable[[], State], *, final: bool = False) -> None:
        if self.kept == self.limit:
            raise KilledError
        self.kept += 1
        self.states[key] = {name: v.clone().contiguous() for name, v in state().items()}

    def restore(self, key: str) -> State | None:
        return self.states.get(key)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def disk() -> type[Disk]:
    return Disk


def frozen(module: nn.Module, shape: tuple[int, int, int] = SHAPE) -> Teacher:
    module.requires_grad_(False).eval()
    return Teacher("test", module, InputSpec(shape, (0.5,) * shape[0], (0.25,) * shape[0]))


@pytest.fixture
def teacher_of() -> Callable[..., Teacher]:
    return frozen


@pytest.fixture(scope="module")
def four_layers() -> Teacher:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = FourLayers()
    for parameter in net.parameters():
        # Larger than usual, so that a coarse grid changes what is predicted.
        parameter.data.mul_(2.5)
    return frozen(net)


@pytest.fixture(scope="module")
def images() -> ImageSet:
    drawn = torch.Generator().manual_seed(1)
    return ImageSet(torch.randn(11, *SHAPE, generator=drawn).clamp(-2, 2))
