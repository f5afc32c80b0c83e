"""Update rules against plain numbers, schedules against their formulas."""

import math

import pytest
import torch

from emptyset.inversion.schedules import Cosine, Staircase
from emptyset.inversion.snapshots import evenly_spaced
from emptyset.inversion.updates import Adam, Clipped, MomentumSign, Restarted

RATE = torch.tensor(0.3, dtype=torch.double)


def test_the_signed_momentum_step_is_mi_fgsms_for_each_image_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 2, 4, 5, generator=generator, dtype=torch.double)
    gradients = [
        # One image's gradient is a thousand times the others': it must not matter.
        torch.randn(3, 2, 4, 5, generator=generator, dtype=torch.double)
        * torch.tensor([1.0, 1000.0, 0.01], dtype=torch.double).view(3, 1, 1, 1)
        for _ in range(4)
    ]
    rule = MomentumSign(momentum=0.7)
    moved, state = start.clone(), rule.start(start)
    for number, gradient in enumerate(gradients):
        rule.step(moved, gradient, state, RATE, number)

    for image in range(3):
        x = start[image].flatten().tolist()
        g = [0.0] * len(x)
        for gradient in gradients:
            values = gradient[image].flatten().tolist()
            norm = sum(abs(v) for v in values)
            g = [0.7 * old + v / norm for old, v in zip(g, values, strict=True)]
            x = [a - 0.3 * math.copysign(1.0, b) for a, b in zip(x, g, strict=True)]
        assert moved[image].flatten().tolist() == pytest.approx(x, abs=1e-12)


def test_the_signed_step_survives_an_image_without_gradient() -> None:
    rule, x = MomentumSign(), torch.ones(2, 1, 2, 3)
    gradient = torch.zeros_like(x)
    gradient[1] = 1.0
    rule.step(x, gradient, rule.start(x), torch.tensor(0.25), 0)
    assert x.flatten().tolist() == [1.0] * 6 + [0.75] * 6


def test_a_restarted_rule_goes_on_like_a_fresh_one() -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(2, 3, generator=generator, dtype=torch.double)
    gradients = torch.randn(5, 2, 3, generator=generator, dtype=torch.double)
    whole, rule = start.clone(), Restarted(Adam(), (2,))
    state = rule.start(whole)
    for number in range(5):
        rule.step(whole, gradients[number], state, RATE, number)
    apart = start.clone()
    for part in (range(2), range(2, 5)):
        optimizer = torch.optim.Adam([apart], lr=0.3)
        for number in part:
            apart.grad = gradients[number].clone()
            optimizer.step()
    torch.testing.assert_close(whole, apart)


def test_a_clipped_rule_ends_at_the_border_of_each_channel() -> None:
    rule = Clipped(MomentumSign(), (-0.1, -2.0), (0.1, 2.0))
    x = torch.zeros(1, 2, 1, 2)
    gradient = torch.tensor([1.0, -1.0, 1.0, -1.0]).view(1, 2, 1, 2)
    rule.step(x, gradient, rule.start(x), torch.tensor(0.5), 0)
    torch.testing.assert_close(x.flatten(), torch.tensor([-0.1, 0.1, -0.5, 0.5]))


def rates(schedule: Cosine | Staircase, total: int) -> list[float]:
    state = schedule.start(torch.device("cpu"))
    found = [state["rate"].item()]
    for number in range(1, total + 1):
        schedule.advance(state, torch.tensor(1.0), number, total)
        found.append(state["rate"].item())
    return found


def test_a_cosine_with_warm_up_grows_linearly_and_restarts() -> None:
    found = rates(Cosine(0.8, warm_up=2, restarts=(6,)), 11)
    first = [0.4, 0.8] + [0.4 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    second = [0.4, 0.8] + [0.4 * (1 + math.cos(math.pi * k / 3)) for k in range(3)] + [0.0]
    assert found == pytest.approx(first + second, abs=1e-7)


def test_the_staircase_is_torchs() -> None:
    weight = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.01)
    theirs = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.95)
    expected = [0.01]
    for _ in range(10):
        optimizer.step()
        theirs.step()
        expected.append(optimizer.param_groups[0]["lr"])
    assert rates(Staircase(0.01, 0.95, 3), 10) == pytest.approx(expected, rel=1e-6)


def test_harvests_are_evenly_spaced_after_the_burn_in_and_the_last_is_the_end() -> None:
    assert evenly_spaced(500, 0.4, 10) == tuple(range(230, 501, 30))
    assert evenly_spaced(7, 0.0, 1) == (7,)
    with pytest.raises(ValueError, match="at most the steps after the burn-in, 3"):
        evenly_spaced(5, 0.4, 4)
