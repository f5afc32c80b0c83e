"""Gaussian noise: its units, its filter."""

import pytest
import torch

from emptyset.images.low_pass import low_pass
from emptyset.synthesizers.noise import Noise, NoiseConfig
from emptyset.teachers.teacher import InputSpec, Teacher


def teacher(mean: float, std: float) -> Teacher:
    return Teacher("test:flat", torch.nn.Flatten(), InputSpec((2, 9, 7), (mean,) * 2, (std,) * 2))


def test_it_has_the_spread_asked_for_in_units_of_the_data() -> None:
    images = Noise(NoiseConfig(spread=0.6)).synthesize(teacher(0.4, 0.2), 300, seed=0).images
    assert images.std().item() == pytest.approx(0.6, rel=0.02)
    # Pixels from 0 to 255: the data are taken for photographs of mean 0.45 and spread 0.25.
    wide = Noise(NoiseConfig(spread=0.6)).synthesize(teacher(0.0, 1 / 255), 300, seed=0).images
    torch.testing.assert_close(wide, (0.45 + 0.25 * images) * 255)


def test_it_can_be_filtered_as_images_are() -> None:
    plain, filtered = (
        Noise(NoiseConfig(low_pass=cutoff)).synthesize(teacher(0.4, 0.2), 4, seed=0).images
        for cutoff in (None, 1.5)
    )
    torch.testing.assert_close(filtered, low_pass(plain, 1.5))
    assert filtered.std() < 0.8 * plain.std()


@pytest.mark.parametrize(("name", "value"), [("spread", 0.0), ("low_pass", 0.0)])
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        NoiseConfig(**{name: value})
