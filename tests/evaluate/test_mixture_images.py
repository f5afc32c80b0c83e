"""Images of chosen mixtures: what a real generator with BatchNorm makes of them, one by one."""

from typing import Any

import pytest
import torch
from torch import nn

from emptyset.errors import RecipeError
from emptyset.evaluate.mixture_images import MixtureImages
from emptyset.generators.class_mixture import ClassMixture
from emptyset.generators.generator_source import GeneratorSource
from emptyset.inversion.standard_units import PHOTO_MEAN, PHOTO_STD
from emptyset.registry import sources
from emptyset.teachers.teacher import InputSpec, Teacher, hash_of_weights

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("qimera", {"mapped": 6}),
    ("qimera", {"mapped": 6, "noise": "per_slot", "backbone": "imagenet"}),
    ("gdfq", {"latent": 6}),
    ("gdfq", {"latent": 6, "backbone": "imagenet"}),
]


def teacher_of(mean: float = 0.5, std: float = 0.25) -> Teacher:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(7, 5),
        )  # fmt: skip
    net.requires_grad_(False).eval()
    spec = InputSpec((3, 8, 12), (mean,) * 3, (std,) * 3)
    return Teacher("test", net, spec, weights_hash=hash_of_weights(net))


def source_of(name: str, teacher: Teacher, settings: dict[str, Any]) -> GeneratorSource:
    """With running statistics that a few lessons moved away from those of any batch."""
    entry = sources.get(name)
    made: GeneratorSource = entry.make(entry.config(widths=(5, 4), **settings)).source(
        teacher, seed=3
    )
    made.begin(3, 6)
    for _ in range(3):
        made.next_batch(6)
    return made


@pytest.mark.parametrize(("name", "settings"), KINDS)
def test_an_image_does_not_depend_on_the_others_of_its_batch(
    name: str, settings: dict[str, Any]
) -> None:
    teacher = teacher_of()
    source = source_of(name, teacher, settings)
    before = {key: value.clone() for key, value in source.generator.state_dict().items()}
    alone = MixtureImages(source, teacher, batch_size=1)
    assert alone.noise == ("zero" if name == "qimera" else "drawn")
    together = MixtureImages(source, teacher, batch_size=99).sweep((1, 4), 6, seed=2)
    torch.testing.assert_close(alone.sweep((1, 4), 6, seed=2), together)
    assert together.shape == (7, 3, 8, 12)
    assert not torch.equal(together[0], together[-1])
    assert all(torch.equal(v, before[k]) for k, v in source.generator.state_dict().items())
    assert source.generator.training


@pytest.mark.parametrize(("name", "settings"), KINDS)
def test_the_ends_of_a_sweep_are_images_of_one_class(name: str, settings: dict[str, Any]) -> None:
    teacher = teacher_of()
    source = source_of(name, teacher, settings)
    sweep = MixtureImages(source, teacher, noise="drawn").sweep((3, 0), 2, seed=9)
    # A share of 0 leaves nothing of the other class, whichever it is.
    other = MixtureImages(source, teacher, noise="drawn").sweep((3, 2), 2, seed=9)
    if settings.get("noise") == "per_slot":
        return  # there slots are normalised together, whatever their shares
    torch.testing.assert_close(sweep[0], other[0])
    assert not torch.allclose(sweep[1], other[1])
    middle = torch.tensor([[3, 0]]), torch.tensor([[0.5, 0.5]])
    random = torch.Generator().manual_seed(9)
    drawn = source.generator.draw(random, ClassMixture(*middle))
    source.generator.eval()
    with torch.no_grad():
        torch.testing.assert_close(sweep[1:2], source.generator(drawn))


def test_images_are_in_the_teachers_units() -> None:
    plain, scaled = teacher_of(), teacher_of(0.0, 1.0)
    source = source_of("qimera", plain, {"mapped": 6})
    standard = MixtureImages(source, plain).sweep((0, 1), 3, seed=0)
    # A teacher of pixels from 0 to 1 is taken for one of photographs.
    in_pixels = MixtureImages(source, scaled).sweep((0, 1), 3, seed=0)
    torch.testing.assert_close(in_pixels, standard * PHOTO_STD + PHOTO_MEAN)


def test_every_drawn_image_has_noise_of_its_own_and_the_seed_repeats_it() -> None:
    teacher = teacher_of()
    made = MixtureImages(source_of("qimera", teacher, {"mapped": 6}), teacher, batch_size=3)
    mixture = ClassMixture(torch.zeros(6, 1, dtype=torch.long), torch.ones(6, 1))
    batches = list(made.drawn(mixture, seed=5))
    assert [len(batch) for batch in batches] == [3, 3]
    images = torch.cat(batches)
    assert len({tuple(image.flatten().tolist()) for image in images}) == 6
    assert torch.equal(torch.cat(list(made.drawn(mixture, seed=5))), images)
    assert not torch.equal(torch.cat(list(made.drawn(mixture, seed=6))), images)


def test_noise_of_no_known_kind_is_refused() -> None:
    teacher = teacher_of()
    source = source_of("qimera", teacher, {"mapped": 6})
    with pytest.raises(RecipeError, match="one of auto, zero, drawn"):
        MixtureImages(source, teacher, noise="some")
