"""What holds for every method that runs on the engine: the filter, compilation, odd sizes."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from emptyset.images.low_pass import low_pass
from emptyset.inversion.compilation import Execution
from emptyset.inversion.engine import invert
from emptyset.inversion.method import Method
from emptyset.registry import synthesizers
from emptyset.teachers.teacher import InputSpec, Teacher

NAMES = [
    name
    for name in synthesizers.names()
    if "low_pass" in synthesizers.get(name).config.__dataclass_fields__
]


def method_of(name: str, teacher: Teacher, **changes: Any) -> Method:
    entry = synthesizers.get(name)
    made = entry.make(dataclasses.replace(entry.config.smallest(), **changes))
    method: Method = made.method(teacher)
    return method


def run(method: Method, teacher: Teacher, count: int, *, compiled: bool = False) -> torch.Tensor:
    execution = Execution(compiled=compiled, dtype=torch.float32)
    made = invert(method, teacher, count, seed=0, settings={}, execution=execution)
    return made.images


def test_the_filter_is_a_setting_of_the_published_methods() -> None:
    published = {"dffg", "dsg", "intraq", "mixmix", "hast", "deep_inversion", "genie_d"}
    assert published | {"knowledge_within"} <= set(NAMES)


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
@pytest.mark.parametrize("name", NAMES)
def test_the_compiled_objective_gives_the_eager_images(name: str, small_teacher: Teacher) -> None:
    eager, compiled = (
        run(method_of(name, small_teacher), small_teacher, 8, compiled=choice)
        for choice in (False, True)
    )
    torch.testing.assert_close(compiled, eager, rtol=1e-2, atol=1e-2)
