"""HAST: its sum, and that its images are harder than those of plain cross-entropy."""

import pytest
import torch

from emptyset.inversion.method import Seen
from emptyset.losses.batch_norm_statistics import gdfq_statistics
from emptyset.losses.layer_statistics import layer_statistics
from emptyset.synthesizers.hast import Hast, HastConfig
from emptyset.teachers.teacher import Teacher


def test_the_objective_is_the_papers_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.double)
    layer = layer_statistics(x, torch.zeros(3).double(), torch.ones(3).double())
    logits = torch.randn(2, 6, generator=generator, dtype=torch.double)
    seen = Seen(x, logits, None, (layer,), torch.tensor([5, 2]), {})
    p = logits.softmax(1)[[0, 1], [5, 2]]
    expected = gdfq_statistics([layer]) + 0.3 * ((1 - p) ** 1.5 * -p.log()).mean()
    found = Hast(HastConfig(hard_weight=0.3, exponent=1.5)).objective(seen)
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)


def test_images_are_harder_with_a_larger_exponent(small_teacher: Teacher) -> None:
    def hardness(exponent: float) -> float:
        config = HastConfig(steps=60, learning_rate=0.1, hard_weight=1.0, exponent=exponent)
        images = Hast(config).synthesize(small_teacher, 24, seed=0)
        p = small_teacher.module(images.images).softmax(1)
        return 1 - float(p[range(24), images.targets].mean())

    assert hardness(4.0) > hardness(0.0) + 0.03


def test_crops_are_an_option(small_teacher: Teacher) -> None:
    plain, cropped = (
        Hast(HastConfig(steps=6, crop=crop)).synthesize(small_teacher, 4, seed=0).images
        for crop in (False, True)
    )
    assert not torch.equal(plain, cropped)


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("exponent", -1.0), ("hard_weight", -1.0), ("smallest_crop", 0.0)],
)
def test_settings_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        HastConfig(**{name: value})  # type: ignore[arg-type]
