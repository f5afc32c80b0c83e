"""What images cost, by counting what really goes through the teacher; and schedules in small."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from emptyset.errors import RecipeError
from emptyset.images.image_set import ImageSet
from emptyset.inversion.budget import (
    has_steps,
    image_iterations,
    with_steps,
    within_image_iterations,
)
from emptyset.registry import Entry, synthesizers
from emptyset.synthesizers.deep_inversion import DeepInversionConfig
from emptyset.synthesizers.genie_d import GenieDConfig
from emptyset.synthesizers.mixmix import MixMix, MixMixConfig
from emptyset.synthesizers.zeroq import ZeroQConfig
from emptyset.teachers.teacher import InputSpec, Teacher, hash_of_weights


class Counting(nn.Module):
    """Counts images that come with gradients, over all copies of itself."""

    seen: ClassVar[list[int]] = []

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, stride=2)
        self.norm = nn.BatchNorm2d(5)
        self.linear = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            Counting.seen.append(len(x))
        return self.linear(self.norm(self.conv(x)).relu().mean((2, 3)))


@pytest.fixture
def teacher() -> Teacher:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Counting().eval().requires_grad_(False)
    Counting.seen.clear()
    spec = InputSpec((3, 8, 9), (0.5,) * 3, (0.25,) * 3)
    return Teacher("test:counting", module, spec, weights_hash=hash_of_weights(module))


@pytest.mark.parametrize("name", synthesizers.names())
def test_the_cost_is_what_goes_through_the_teacher(name: str, teacher: Teacher) -> None:
    entry = synthesizers.get(name)
    synthesizer = entry.make(entry.config.smallest())
    expected = image_iterations(synthesizer, teacher, 11)
    synthesizer.synthesize(teacher, 11, seed=0)
    assert sum(Counting.seen) == expected


def test_every_teacher_of_a_step_counts(teacher: Teacher) -> None:
    config = replace(MixMixConfig.smallest(), teachers_per_step=2)
    mixmix = MixMix(config, teachers=[teacher, teacher])
    expected = image_iterations(mixmix, teacher, 7)
    mixmix.synthesize(teacher, 7, seed=0)
    # 2 batches of 4 images, 3 steps, 2 of 3 teachers.
    assert sum(Counting.seen) == expected == 2 * 4 * 3 * 2


@pytest.mark.parametrize("budget", [1000, 1001, 5000])
@pytest.mark.parametrize("name", [n for n in synthesizers.names() if n != "noise"])
def test_as_many_steps_as_the_budget_allows(name: str, budget: int, teacher: Teacher) -> None:
    entry = synthesizers.get(name)
    config = entry.config.smallest()
    chosen = within_image_iterations(entry, config, teacher, 11, budget)
    cost = image_iterations(entry.make(chosen), teacher, 11)
    more = image_iterations(entry.make(replace(chosen, steps=chosen.steps + 1)), teacher, 11)
    assert cost is not None
    assert more is not None
    assert cost <= budget < more


def test_a_method_without_steps_costs_nothing_and_stays(teacher: Teacher) -> None:
    noise = synthesizers.get("noise")
    config = noise.config()
    assert not has_steps(config)
    assert image_iterations(noise.make(config), teacher, 5) == 0
    assert within_image_iterations(noise, config, teacher, 5, 1) is config


def test_a_schedule_shrinks_as_a_whole() -> None:
    shorter = with_steps(DeepInversionConfig(), 300)
    assert (shorter.steps, shorter.warm_up) == (300, 10)
    longer = with_steps(GenieDConfig(), 8000)
    assert (longer.plateau_patience, longer.generator_decay_every) == (200, 200)
    assert with_steps(DeepInversionConfig(warm_up=0), 300).warm_up == 0
    assert with_steps(DeepInversionConfig(), 10).warm_up == 1


def test_patience_is_not_shorter_than_five_steps_unless_it_was() -> None:
    assert with_steps(ZeroQConfig(), 10).plateau_patience == 5
    assert with_steps(ZeroQConfig(plateau_patience=3), 10).plateau_patience == 3


def test_what_a_person_chose_stays() -> None:
    config = ZeroQConfig(plateau_patience=70)
    assert with_steps(config, 50, given=["plateau_patience"]).plateau_patience == 70


def test_a_budget_below_one_step_or_below_what_settings_need_is_refused(teacher: Teacher) -> None:
    dffg, zeroq = synthesizers.get("dffg"), synthesizers.get("zeroq")
    with pytest.raises(RecipeError, match="less than one step"):
        within_image_iterations(zeroq, zeroq.config(), teacher, 100, 99)
    # 10 snapshots after a burn-in of 40 % need more than 16 steps.
    with pytest.raises(RecipeError, match=r"allows 9 steps.*snapshots"):
        within_image_iterations(dffg, dffg.config(), teacher, 100, 99)


@dataclass(frozen=True)
class OwnLoopConfig:
    """Of a method of somebody else."""

    steps: int = 20


@dataclass(frozen=True)
class OwnLoop:
    """Has a loop of its own, and does not say what it costs."""

    config: OwnLoopConfig

    def synthesize(self, teacher: Teacher, count: int, **_: Any) -> ImageSet:
        return ImageSet(torch.zeros(count, *teacher.input.shape))


@dataclass(frozen=True)
class CountedLoop(OwnLoop):
    """Says what it costs."""

    def image_iterations(self, teacher: Teacher, count: int) -> int:
        return 3 * count * self.config.steps


def entry_of(method: Any) -> Entry:
    return Entry("own", "synthesizer", OwnLoopConfig, method, "Own.", "ours")


def test_a_loop_of_its_own_may_say_what_it_costs(teacher: Teacher) -> None:
    silent, counted = entry_of(OwnLoop), entry_of(CountedLoop)
    assert image_iterations(OwnLoop(OwnLoopConfig()), teacher, 5) is None
    with pytest.raises(RecipeError, match="in seconds"):
        within_image_iterations(silent, OwnLoopConfig(), teacher, 5, 1000)
    chosen = within_image_iterations(counted, OwnLoopConfig(), teacher, 5, 1000)
    assert chosen.steps == 66
