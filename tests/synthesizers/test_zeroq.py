"""ZeroQ: the loss that makes the method, and its settings."""

import pytest
import torch
from torch import nn

from emptyset.errors import UnsupportedModelError
from emptyset.images.image_set import ImageSet
from emptyset.inversion.method import Seen
from emptyset.losses.layer_statistics import layer_statistics
from emptyset.registry import synthesizers
from emptyset.synthesizers.zeroq import ZeroQ, ZeroQConfig
from emptyset.teachers.teacher import InputSpec, Teacher


def teacher() -> Teacher:
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    module[1].running_mean.copy_(torch.randn(5, generator=generator))
    module[1].running_var.copy_(1 + torch.rand(5, generator=generator))
    spec = InputSpec((3, 6, 7), (0.5,) * 3, (0.25,) * 3)
    return Teacher("test:one", module.requires_grad_(False).eval(), spec)


def distance(images: ImageSet, given: Teacher) -> float:
    """ZeroQ's loss by torch's own statistics, in double precision."""
    module = given.module
    features = module[0](images.images).double()  # type: ignore[index]
    total = 0.0
    for x, mean, var in (
        (features, module[1].running_mean, module[1].running_var),  # type: ignore[index]
        (images.images.double(), torch.zeros(3), torch.ones(3)),
    ):
        spread, found = torch.std_mean(x, (2, 3))
        gap = (found - mean).square() + (spread - var.double().sqrt()).square()
        total += gap.sum().item() / len(x)
    return total


@pytest.mark.parametrize("schedule", ["plateau", "cosine"])
@pytest.mark.parametrize("statistics", ["sample", "batch"])
def test_brings_the_statistics_close_to_the_stored_ones(statistics: str, schedule: str) -> None:
    given = teacher()
    config = ZeroQConfig(
        steps=60, batch_size=8, statistics=statistics, schedule=schedule, learning_rate=0.1
    )
    start = ZeroQ(ZeroQConfig(steps=1, learning_rate=1e-9)).synthesize(given, 8, seed=0)
    found = ZeroQ(config).synthesize(given, 8, seed=0)
    share = distance(found, given) / distance(start, given)
    # The batch form leaves single images free.
    assert share < (0.05 if statistics == "sample" else 0.7)


def test_clipped_images_stay_between_black_and_white_and_others_do_not() -> None:
    given, steps = teacher(), {"steps": 25, "learning_rate": 0.5}
    black, white = (0 - 0.5) / 0.25, (1 - 0.5) / 0.25
    free = ZeroQ(ZeroQConfig(**steps)).synthesize(given, 9, seed=0).images
    clipped = ZeroQ(ZeroQConfig(**steps, clip=True)).synthesize(given, 9, seed=0).images
    assert free.min() < black - 0.1
    assert free.max() > white + 0.1
    assert clipped.min() >= black - 1e-5
    assert clipped.max() <= white + 1e-5


def test_the_first_loss_is_the_papers() -> None:
    given = teacher()
    losses: list[float] = []

    class Recording(ZeroQ):
        def objective(self, seen):  # type: ignore[no-untyped-def]
            loss = super().objective(seen)
            losses.append(loss.item())
            return loss

    made = Recording(ZeroQConfig(steps=1, learning_rate=1e-9))
    images = made.synthesize(given, 6, seed=1)
    # The teacher runs in bfloat16 where the hardware has it.
    assert losses[0] == pytest.approx(distance(images, given), rel=1e-2)


def test_the_legacy_start_is_as_narrow_as_the_released_code_has_it() -> None:
    config = ZeroQConfig(steps=1, learning_rate=1e-9, initial="legacy")
    images = ZeroQ(config).synthesize(teacher(), 9, seed=0).images
    assert images.std().item() == pytest.approx(73.6 / 5418.75, rel=0.05)
    # Pixels from 0 to 254, each as likely as any other, less 127.5.
    assert images.abs().max().item() == pytest.approx(127.5 / 5418.75, rel=0.02)


@pytest.mark.parametrize("statistics", ["sample", "batch", "joint"])
def test_the_term_on_the_images_is_beside_mean_0_and_spread_1(statistics: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images = 2 + 3 * torch.randn(4, 3, 5, 6, generator=generator, dtype=torch.double)
    features = torch.randn(4, 2, 3, 3, generator=generator, dtype=torch.double)
    layers = (layer_statistics(features, torch.zeros(2).double(), torch.ones(2).double()),)
    seen = Seen(images, torch.zeros(4, 5), None, layers, None, {})

    def loss(weight: float) -> float:
        return float(ZeroQ(ZeroQConfig(statistics=statistics, input_weight=weight)).objective(seen))

    if statistics == "sample":
        spread, mean = torch.std_mean(images, (2, 3))
        expected = (mean.square() + (spread - 1).square()).sum() / 4
    else:
        spread, mean = torch.std_mean(images, (0, 2, 3), correction=0)
        expected = (mean.square() + (spread - 1).square()).sum()
    assert loss(0.7) - loss(0.0) == pytest.approx(0.7 * float(expected), rel=1e-4)


def test_with_a_class_weight_images_are_of_the_classes_they_were_made_for() -> None:
    given = teacher()
    config = ZeroQConfig(steps=60, learning_rate=0.3, class_weight=5.0, schedule="cosine")
    made = ZeroQ(config).synthesize(given, 24, seed=3)
    assert made.targets is not None
    assert len(set(made.targets.tolist())) > 5
    said = given.module(made.images).argmax(1)
    # 100 outputs: chance is 1 %.
    assert (said == made.targets).float().mean() > 0.4


def test_has_no_targets() -> None:
    assert ZeroQ(ZeroQConfig.smallest()).synthesize(teacher(), 3, seed=0).targets is None


def test_needs_batch_norm() -> None:
    bare = Teacher("test:bare", nn.Flatten(), InputSpec((3, 6, 7), (0.5,) * 3, (0.25,) * 3))
    with pytest.raises(UnsupportedModelError, match="--images DIR"):
        ZeroQ(ZeroQConfig()).synthesize(bare, 4, seed=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("learning_rate", -0.5),
        ("batch_size", 0),
        ("statistics", "images"),
        ("initial", "uniform"),
        ("schedule", "step"),
        ("plateau_factor", 1.0),
        ("input_weight", -1.0),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        ZeroQConfig(**{name: value})  # type: ignore[arg-type]


def test_noise_is_gaussian_in_the_teachers_units() -> None:
    entry = synthesizers.get("noise")
    plain = Teacher("test:plain", nn.Flatten(), InputSpec((3, 16, 17), (0.0,) * 3, (1.0,) * 3))
    images = entry.make(entry.config()).synthesize(plain, 40, seed=0).images
    # Photographs' pixel mean and spread, as the teacher's own constants say nothing.
    assert images.mean().item() == pytest.approx(0.45, abs=0.01)
    assert images.std().item() == pytest.approx(0.25, abs=0.01)
