"""Genie-D: its objective, its step sizes, its generator and its swing at work."""

import pytest
import torch

from emptyset.inversion.frozen_teacher import FrozenTeacher
from emptyset.inversion.method import Seen
from emptyset.inversion.schedules import Plateau, Staircase
from emptyset.synthesizers.genie_d import GenieD, GenieDConfig
from emptyset.teachers.teacher import Teacher

EPSILON = 1e-6


def test_the_objective_is_the_released_codes(small_teacher: Teacher) -> None:
    images = torch.randn(5, *small_teacher.input.shape, generator=torch.Generator().manual_seed(0))
    looked = FrozenTeacher(small_teacher).look(images)
    module = small_teacher.module
    expected = 0.0
    x = images
    for layer in module:  # type: ignore[union-attr]
        if isinstance(layer, torch.nn.BatchNorm2d):
            spread, mean = torch.std_mean(x, (0, 2, 3))
            expected += float((mean - layer.running_mean).square().mean())
            expected += float((spread - layer.running_var.sqrt()).square().mean())
        x = layer(x)
    spread, mean = torch.std_mean(images, (2, 3))
    expected += 0.5 * float((mean.square().sum() + (spread - 1).square().sum()) / 5)
    seen = Seen(images, looked.logits, looked.features, looked.layers, None, {})
    found = GenieD(GenieDConfig(input_weight=0.5)).objective(seen)
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_latents_take_the_large_steps_and_weights_the_small_ones(small_teacher: Teacher) -> None:
    groups = GenieD(GenieDConfig()).method(small_teacher).groups
    assert groups[0].schedule == Plateau(0.1, 0.1, 100, 1e-4)
    assert [g.schedule for g in groups[1:]] == [Staircase(0.01, 0.95, 100)] * 10


def test_the_loss_falls_and_colours_of_a_batch_are_standardised(small_teacher: Teacher) -> None:
    losses: list[float] = []

    class Watched(GenieD):
        def objective(self, seen: Seen) -> torch.Tensor:
            loss = super().objective(seen)
            losses.append(loss.item())
            return loss

    config = GenieDConfig(steps=60, latent=16, widths=(12, 8))
    images = Watched(config).synthesize(small_teacher, 16, seed=0)
    assert losses[-1] < 0.3 * losses[0]
    assert images.targets is None
    torch.testing.assert_close(images.images.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(images.images.std((0, 2, 3)), torch.ones(3), rtol=0, atol=1e-2)


def test_swing_is_one_draw_per_strided_convolution_and_changes_the_images(
    small_teacher: Teacher,
) -> None:
    swung, still = (
        GenieD(GenieDConfig(steps=5, latent=6, widths=(4, 3), swing=swing)) for swing in (1, 0)
    )
    draw = swung.method(small_teacher).draw
    assert draw is not None
    assert draw(0, torch.Generator().manual_seed(0), 3)["swing"].shape == (1, 2)
    assert still.method(small_teacher).draw is None
    first, second = (made.synthesize(small_teacher, 4, seed=0).images for made in (swung, still))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("latent", 0), ("widths", (0, 4)), ("plateau_factor", 1.0),
     ("generator_decay", 0.0), ("input_weight", -1.0)],
)  # fmt: skip
def test_settings_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        GenieDConfig(**{name: value})  # type: ignore[arg-type]
