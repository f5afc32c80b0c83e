"""Agreement and its intervals, against scipy-free closed forms and plain loops."""

import math

import pytest
import torch

from emptyset.errors import ImagesError
from emptyset.evaluate.agreement import agreement, bootstrap_interval, divergence
from emptyset.images.image_set import ImageSet

COUNT = 400
TEACHER = torch.randn(COUNT, 7, generator=torch.Generator().manual_seed(0))
STUDENT = TEACHER + 0.5 * torch.randn(COUNT, 7, generator=torch.Generator().manual_seed(1))
IMAGES = ImageSet(torch.arange(float(COUNT)).view(-1, 1, 1, 1).expand(COUNT, 1, 2, 2).clone())


def looked_up(logits: torch.Tensor):  # type: ignore[no-untyped-def]
    return lambda images: logits[images[:, 0, 0, 0].long()]


def test_share_and_divergence_are_those_of_a_plain_loop() -> None:
    same, total = 0, 0.0
    for t, s in zip(TEACHER.tolist(), STUDENT.tolist(), strict=True):
        same += t.index(max(t)) == s.index(max(s))
        p = [math.exp(v) / sum(map(math.exp, t)) for v in t]
        q = [math.exp(v) / sum(map(math.exp, s)) for v in s]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    found = agreement(looked_up(STUDENT), looked_up(TEACHER), IMAGES, seed=0, batch_size=64)
    assert found.count == COUNT
    assert found.share == pytest.approx(same / COUNT)
    assert found.kl == pytest.approx(total / COUNT, rel=1e-6)
    assert found.low < found.share < found.high
    assert found.kl_low < found.kl < found.kl_high


def test_the_interval_is_as_wide_as_the_normal_approximation_says() -> None:
    values = (torch.arange(900) % 10 < 8).double()[:, None]
    low, high = bootstrap_interval(values, seed=0)
    half = 1.96 * math.sqrt(0.8 * 0.2 / 900)
    assert low.item() == pytest.approx(0.8 - half, abs=0.004)
    assert high.item() == pytest.approx(0.8 + half, abs=0.004)


def test_the_same_seed_gives_the_same_interval_and_global_state_is_left_alone() -> None:
    values = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)).double()
    before = torch.get_rng_state()
    first, second = (bootstrap_interval(values, seed=4) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(torch.get_rng_state(), before)


def test_full_agreement_is_not_reported_as_certainty() -> None:
    found = agreement(looked_up(TEACHER), looked_up(TEACHER), IMAGES, seed=0)
    assert found.share == found.high == 1.0
    # With n of n the exact lower end solves low^n = 0.025.
    assert found.low**COUNT == pytest.approx(0.025)
    assert found.kl == 0.0


def test_divergence_is_zero_exactly_when_both_say_the_same() -> None:
    assert divergence(TEACHER, TEACHER).tolist() == [0.0] * COUNT
    shifted = divergence(TEACHER, TEACHER + 3.0)
    assert shifted.abs().max().item() < 1e-6


def test_a_student_that_says_nothing_agrees_with_nobody() -> None:
    broken = STUDENT.clone()
    broken[:100] = float("nan")
    whole = agreement(looked_up(STUDENT), looked_up(TEACHER), IMAGES, seed=0, batch_size=64)
    found = agreement(looked_up(broken), looked_up(TEACHER), IMAGES, seed=0, batch_size=64)
    kept = (STUDENT[100:].argmax(1) == TEACHER[100:].argmax(1)).sum()
    assert found.share == pytest.approx(int(kept) / COUNT)
    assert found.share < whole.share


def test_networks_of_different_classes_are_refused() -> None:
    with pytest.raises(ImagesError, match="student has 6 classes, the teacher 7"):
        agreement(looked_up(STUDENT[:, :6]), looked_up(TEACHER), IMAGES, seed=0)
