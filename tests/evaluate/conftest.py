"""A generator and a teacher whose every number is known, for what is measured of generators."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from emptyset.generators.class_mixture import SingleClasses, SuperposedClasses
from emptyset.generators.conditions import NoiseAlone, ScaledEmbedding, SuperposedEmbedding
from emptyset.generators.generator import Generator
from emptyset.generators.generator_source import GeneratorSource
from emptyset.generators.judged import Term
from emptyset.generators.method import GeneratorMethod
from emptyset.generators.settings import GeneratorConfig
from emptyset.teachers.teacher import InputSpec, Teacher

Toy = Callable[..., GeneratorSource]


class Parabola(nn.Module):
    """The latent x to an image of two pixels, x and x²."""

    latent, conditional = 1, False

    def forward(self, latents: Tensor, weights: Tensor | None) -> Tensor:
        return torch.cat([latents, latents.square()], dim=1).view(-1, 1, 1, 2)


def toy_teacher(classes: int = 3) -> Teacher:
    """Features are the two pixels; the logits of class c are x·(c+1) − x²·c."""
    linear = nn.Linear(2, classes, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[c + 1.0, -1.0 * c] for c in range(classes)]))
    module = nn.Sequential(nn.Flatten(), linear).requires_grad_(False).eval()
    return Teacher("test:parabola", module, InputSpec((1, 1, 2), (0.5,), (0.25,)))


CONDITIONS: dict[str, Any] = {
    "superposed": lambda classes: SuperposedEmbedding(classes, 1, mapped=None),
    "per_slot": lambda classes: SuperposedEmbedding(classes, 1, mapped=None, noise="per_slot"),
    "scaled": lambda classes: ScaledEmbedding(classes, 1),
    "noise": lambda classes: NoiseAlone(1),
}


def toy_source(
    teacher: Teacher,
    embeddings: Sequence[float] = (0.0, 1.0, 3.0),
    *,
    condition: str = "superposed",
    labelled: bool = True,
) -> GeneratorSource:
    classes = len(embeddings)

    def prepare(generator: Generator) -> None:
        if hasattr(generator.condition, "embedding"):
            with torch.no_grad():
                generator.condition.embedding.weight[:, 0] = torch.tensor(embeddings)

    def build() -> Generator:
        generator = Generator(CONDITIONS[condition](classes), Parabola(), classes)
        generator.unused = nn.Linear(1, 1)  # so that every condition leaves something to train
        return generator

    sampler = (
        SuperposedClasses(classes, 2, 0.4) if condition == "superposed" else SingleClasses(classes)
    )
    method = GeneratorMethod(
        name="toy",
        build=build,
        sampler=sampler,
        terms=(Term("none", 1.0, lambda judged: judged.images.mean()),),
        config=GeneratorConfig(),
        settings={},
        prepare=prepare,
        labelled=labelled,
    )
    return GeneratorSource(method, teacher, seed=0)


@pytest.fixture
def teacher() -> Teacher:
    return toy_teacher()


@pytest.fixture
def make_teacher() -> Callable[[int], Teacher]:
    return toy_teacher


@pytest.fixture
def toy(teacher: Teacher) -> Toy:
    def make(*args: Any, of: Teacher = teacher, **more: Any) -> GeneratorSource:
        return toy_source(of, *args, **more)

    return make
