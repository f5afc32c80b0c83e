"""What holds for every method that runs on the engine: settings, filter, joint sets, odd sizes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from emptyset.images.low_pass import low_pass
from emptyset.inversion.compilation import Execution
from emptyset.inversion.config import InversionConfig
from emptyset.inversion.engine import invert
from emptyset.inversion.method import Method
from emptyset.monitor import SILENT, Monitor, State
from emptyset.registry import synthesizers
from emptyset.teachers.teacher import InputSpec, Teacher

NAMES = [
    name
    for name in synthesizers.names()
    if issubclass(synthesizers.get(name).config, InversionConfig)
]


def method_of(name: str, teacher: Teacher, **changes: Any) -> Method:
    entry = synthesizers.get(name)
    made = entry.make(dataclasses.replace(entry.config.smallest(), **changes))
    method: Method = made.method(teacher)
    return method


def run(
    method: Method,
    teacher: Teacher,
    count: int,
    *,
    compiled: bool = False,
    monitor: Monitor = SILENT,
) -> torch.Tensor:
    execution = Execution(compiled=compiled, dtype=torch.float32)
    made = invert(method, teacher, count, seed=0, settings={}, execution=execution, monitor=monitor)
    return made.images


class KilledError(Exception):
    pass


class Disk:
    """Keeps every state offered, and is killed after a number of them."""

    def __init__(self, limit: int | None) -> None:
        self.states: dict[str, State] = {}
        self.limit = limit
        self.kept = 0

    def advance(self, what: str, done: int, total: int, detail: str = "") -> None:
        assert 0 < done <= total

    def note(self, message: str) -> None:
        raise AssertionError(message)

    def keep(self, key: str, state: Callable[[], State], *, final: bool = False) -> None:
        if self.kept == self.limit:
            raise KilledError
        self.kept += 1
        self.states[key] = {name: value.clone() for name, value in state().items()}

    def restore(self, key: str) -> State | None:
        return self.states.get(key)


def test_every_published_method_has_the_common_settings() -> None:
    published = {"dffg", "dsg", "intraq", "mixmix", "hast", "deep_inversion", "genie_d"}
    assert published | {"knowledge_within", "zeroq"} <= set(NAMES)


def test_the_filter_is_a_setting_of_every_synthesizer() -> None:
    for entry in synthesizers.entries():
        assert "low_pass" in entry.config.__dataclass_fields__, entry.name


@pytest.mark.parametrize("name", NAMES)
def test_common_settings_out_of_range_are_refused(name: str) -> None:
    smallest = synthesizers.get(name).config.smallest()
    for setting, value in (
        ("steps", 0), ("batch_size", 0), ("joint_steps", 0), ("low_pass", 0.0),
        ("statistics", "all"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=setting):
            dataclasses.replace(smallest, **{setting: value})


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_explained(name: str) -> None:
    config = synthesizers.get(name).config
    told = "".join(kind.__doc__ or "" for kind in config.__mro__)
    for field in dataclasses.fields(config):
        assert f"\n        {field.name}: " in told, field.name


@pytest.mark.parametrize("name", NAMES)
def test_batches_can_be_matched_as_one_set_and_a_killed_run_goes_on(
    name: str, small_teacher: Teacher
) -> None:
    changes = {"statistics": "joint", "joint_steps": 2, "batch_size": 3}
    method = method_of(name, small_teacher, **changes)
    count = 8 * max(1, len(method.snapshots))
    disk = Disk(None)
    joint = run(method, small_teacher, count, monitor=disk)
    assert joint.shape == (count, *small_teacher.input.shape)
    alone = run(method_of(name, small_teacher, batch_size=3), small_teacher, count)
    assert not torch.allclose(joint, alone)
    for limit in (1, disk.kept // 2, disk.kept - 1):
        killed = Disk(limit)
        with pytest.raises(KilledError):
            run(method, small_teacher, count, monitor=killed)
        killed.limit = None
        assert torch.equal(run(method, small_teacher, count, monitor=killed), joint)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_one_image_is_refused_unless_images_are_matched_alone_or_as_a_set(
    name: str, small_teacher: Teacher
) -> None:
    smallest = synthesizers.get(name).config.smallest()
    with pytest.raises(ValueError, match=r"'batch_size' is 1.*at least 2, or statistics 'joint'"):
        dataclasses.replace(smallest, batch_size=1, statistics="batch")
    method = method_of(name, small_teacher, batch_size=1, statistics="joint")
    images = run(method, small_teacher, 4 * max(1, len(method.snapshots)))
    assert bool(torch.isfinite(images).all())


def test_images_that_are_matched_alone_may_be_made_one_by_one(small_teacher: Teacher) -> None:
    for name in ("zeroq", "dsg"):
        method = method_of(name, small_teacher, batch_size=1, statistics="sample")
        assert len(run(method, small_teacher, 3)) == 3


@pytest.mark.parametrize("name", NAMES)
def test_finished_images_are_filtered(name: str, small_teacher: Teacher) -> None:
    plain = run(method_of(name, small_teacher), small_teacher, 4)
    filtered = run(method_of(name, small_teacher, low_pass=2.0), small_teacher, 4)
    torch.testing.assert_close(filtered, low_pass(plain, 2.0))
    assert not torch.allclose(filtered, plain)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(7, 5), (6, 13)])
def test_odd_sizes_and_single_channels_are_made(name: str, size: tuple[int, int]) -> None:
    module = nn.Sequential(
        nn.Conv2d(1, 4, 2, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    spec = InputSpec((1, *size), (0.5,), (0.25,))
    given = Teacher("test:grey", module.requires_grad_(False).eval(), spec)
    images = run(method_of(name, given), given, 5)
    assert images.shape == (5, 1, *size)
    assert bool(torch.isfinite(images).all())


@pytest.mark.slow
@pytest.mark.parametrize("statistics", ["batch", "joint"])
@pytest.mark.parametrize("name", NAMES)
def test_the_compiled_objective_gives_the_eager_images(
    name: str, statistics: str, small_teacher: Teacher
) -> None:
    method = method_of(name, small_teacher, statistics=statistics)
    count = 8 * max(1, len(method.snapshots))
    eager, compiled = (
        run(method, small_teacher, count, compiled=choice) for choice in (False, True)
    )
    torch.testing.assert_close(compiled, eager, rtol=1e-2, atol=1e-2)
