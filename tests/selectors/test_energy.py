"""The energy filter: both forms of the score, and who stays."""

import math

import pytest
import torch
from torch import nn

from emptyset.errors import ImagesError
from emptyset.images.image_set import ImageSet
from emptyset.selectors.energy import (
    Energy,
    EnergyConfig,
    free_energy,
    keep_lowest,
    printed_energy,
)
from emptyset.teachers.teacher import InputSpec, Teacher

LOGITS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.double)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_scores_are_their_formulas(temperature: float) -> None:
    for row, free, printed in zip(
        LOGITS.tolist(),
        free_energy(LOGITS, temperature).tolist(),
        printed_energy(LOGITS, temperature).tolist(),
        strict=True,
    ):
        total = sum(math.exp(f / temperature) for f in row)
        assert free == pytest.approx(-temperature * math.log(total))
        expected = -temperature * sum(math.exp(-f / temperature) for f in row)
        assert printed == pytest.approx(expected)


def test_the_free_energy_survives_logits_that_overflow_the_printed_form() -> None:
    logits = torch.tensor([[-200.0, 1.0]])
    assert math.isinf(printed_energy(logits, 1.0).item())
    assert free_energy(logits, 1.0).item() == pytest.approx(-1.0)


def test_the_lowest_of_every_group_stay_in_the_old_order() -> None:
    scores = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 9.0])
    together = torch.zeros(6, dtype=torch.long)
    assert keep_lowest(scores, together, 0.5).tolist() == [1, 3, 4]
    groups = torch.tensor([0, 1, 0, 1, 1, 2])
    # Half of two, of three (rounded up), of one.
    assert keep_lowest(scores, groups, 0.5).tolist() == [1, 2, 3, 5]


@pytest.mark.parametrize(("count", "share", "kept"), [(30, 0.1, 3), (10, 0.7, 7), (10, 0.25, 3)])
def test_the_count_kept_is_the_share_rounded_up(count: int, share: float, kept: int) -> None:
    scores = torch.arange(float(count))
    assert len(keep_lowest(scores, torch.zeros(count, dtype=torch.long), share)) == kept


def flat_teacher() -> Teacher:
    """Logits are the four pixels."""
    return Teacher("test:flat", nn.Flatten(), InputSpec((1, 2, 2), (0.5,), (0.2,)))


def images(targets: torch.Tensor | None = None) -> ImageSet:
    return ImageSet(LOGITS.float().view(6, 1, 2, 2), targets)


def test_keeps_the_images_of_the_lowest_energy_and_says_so() -> None:
    chosen = Energy(EnergyConfig(keep=0.5, batch_size=4)).select(images(), flat_teacher())
    energies = free_energy(LOGITS, 1.0)
    expected = sorted(sorted(range(6), key=lambda i: energies[i].item())[:3])
    assert torch.equal(chosen.images, images().images[expected])
    torch.testing.assert_close(chosen.scores["energy"], energies[expected].float())
    assert chosen.history[-1]["of"] == 6
    assert chosen.history[-1]["count"] == 3


def test_per_class_keeps_the_balance() -> None:
    targets = torch.tensor([0, 0, 1, 1, 2, 2])
    chosen = Energy(EnergyConfig(keep=0.5, per_class=True)).select(images(targets), flat_teacher())
    assert chosen.targets is not None
    assert chosen.targets.tolist() == [0, 1, 2]


def test_a_score_that_overflows_is_an_error_that_names_the_way_out() -> None:
    far = ImageSet(torch.full((3, 1, 2, 2), -200.0))
    with pytest.raises(ImagesError, match=r"not finite.*without `printed`"):
        Energy(EnergyConfig(printed=True)).select(far, flat_teacher())


@pytest.mark.parametrize("setting", [{"keep": 0.0}, {"keep": 1.5}, {"temperature": 0.0}])
def test_settings_out_of_range_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        EnergyConfig(**setting)  # type: ignore[arg-type]
