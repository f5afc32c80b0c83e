"""Batches that move in rounds: against a plain loop, killed, spilled to files, with context."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from emptyset.inversion import parked_states, turns
from emptyset.inversion.compilation import Execution
from emptyset.inversion.engine import invert
from emptyset.inversion.method import BatchStart, Group, Method, Seen
from emptyset.inversion.schedules import Plateau
from emptyset.inversion.updates import Adam
from emptyset.losses.batch_norm_statistics import deep_inversion_statistics, gdfq_statistics
from emptyset.monitor import State
from emptyset.teachers.teacher import InputSpec, Teacher

EXACT = Execution(compiled=False, dtype=torch.float32)


def network(seed: int = 0) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 2), nn.BatchNorm2d(3),
        nn.Flatten(), nn.Linear(3 * 2 * 3, 3),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
        for norm in (module[1], module[4]):
            norm.running_mean.normal_(generator=generator)
            norm.running_var.uniform_(0.5, 2.0, generator=generator)
    return module.requires_grad_(False).eval()


def teacher(seed: int = 0) -> Teacher:
    return Teacher(f"test:{seed}", network(seed), InputSpec((2, 5, 6), (0.5,) * 2, (0.25,) * 2))


def objective(seen: Seen) -> Tensor:
    return deep_inversion_statistics(seen.layers) + seen.logits.square().mean()


def method(**changes: Any) -> Method:
    settings: dict[str, Any] = {
        "name": "test",
        "objective": objective,
        "groups": (Group(Adam(), Plateau(0.1, patience=3)),),
        "steps": 7,
        "batch_size": 3,
        "joint_steps": 2,
    }
    return Method(**(settings | changes))


def run(count: int = 9, monitor: Any = None, **changes: Any) -> Any:
    more = {} if monitor is None else {"monitor": monitor}
    return invert(method(**changes), teacher(), count, seed=3, settings={}, execution=EXACT, **more)


def test_does_what_a_plain_loop_over_rounds_does() -> None:
    module = network()
    norms = (module[1], module[4])
    seeds = torch.randint(2**62, (3,), generator=torch.Generator().manual_seed(3)).tolist()
    images = [
        torch.randn(3, 2, 5, 6, generator=torch.Generator().manual_seed(s)).requires_grad_()
        for s in seeds
    ]
    rules = [torch.optim.Adam([x], lr=0.1) for x in images]
    plateaus = [
        torch.optim.lr_scheduler.ReduceLROnPlateau(r, patience=3, min_lr=1e-4) for r in rules
    ]
    last: dict[int, list[Tensor]] = {}
    for first in (0, 2, 4, 6):
        for batch in range(3):
            for _ in range(first, min(first + 2, 7)):
                seen = [module[0](images[batch]), module[:4](images[batch])]
                loss = module(images[batch]).square().mean()
                for position, norm in enumerate(norms):
                    others = [x[position] for b, x in sorted(last.items()) if b != batch]
                    everything = torch.cat([seen[position], *others])
                    # The value of the whole set, the gradient of this batch as if it were the set.
                    scaled = everything.detach() + len(everything) / 3 * (
                        everything - everything.detach()
                    )
                    var, mean = torch.var_mean(scaled, (0, 2, 3), correction=0)
                    loss = loss + (var - norm.running_var).norm()
                    loss = loss + (mean - norm.running_mean).norm()
                rules[batch].zero_grad()
                loss.backward()
                rules[batch].step()
                plateaus[batch].step(loss.item())
            # What it caused in its last step, not what it would cause now.
            last[batch] = [x.detach() for x in seen]
    torch.testing.assert_close(run().images, torch.cat(images).detach(), rtol=1e-3, atol=1e-4)


def test_a_single_batch_is_the_whole_set() -> None:
    assert torch.equal(run(3).images, run(3, joint_steps=None).images)
    assert not torch.equal(run(9).images, run(9, joint_steps=None).images)


def test_the_set_as_a_whole_comes_nearer_than_batches_on_their_own() -> None:
    given, signs = teacher(), torch.tensor([-1.0, 1.0])
    module: Any = given.module
    data = torch.randn(2, 200, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    data = (data + 0.9 * signs.view(2, 1, 1, 1, 1)).flatten(0, 1)

    def moments(images: Tensor) -> list[tuple[Tensor, Tensor]]:
        seen = (module[0](images), module[:4](images))
        return [torch.var_mean(x, (0, 2, 3), correction=0) for x in seen]

    for position, norm in enumerate((module[1], module[4])):
        var, mean = moments(data)[position]
        norm.running_var.copy_(var)
        norm.running_mean.copy_(mean)

    def distance(images: Tensor) -> float:
        stored = [(norm.running_var, norm.running_mean) for norm in (module[1], module[4])]
        pairs = zip(moments(images), stored, strict=True)
        return sum(float((a - b).norm()) for x, y in pairs for a, b in zip(x, y, strict=True))

    # Every batch belongs to one half of the data, and alone would have to deny it.
    def pulled(seen: Seen) -> Tensor:
        away = seen.images.mean() - 0.9 * seen.drawn["side"]
        return gdfq_statistics(seen.layers) + 4 * away.square()

    def made(turn: int | None) -> Tensor:
        sides = itertools.cycle(signs)
        changes = method(
            steps=80, objective=pulled, context=lambda start: {"side": next(sides)},
            context_follows=False, joint_steps=turn, batch_size=6,
        )  # fmt: skip
        return invert(changes, given, 48, seed=1, settings={}, execution=EXACT).images

    joint, alone = made(4), made(None)
    assert distance(joint) < 0.3 * distance(alone)


def labels(generator: torch.Generator, count: int) -> Tensor:
    return torch.randint(3, (count,), generator=generator)


class KilledError(Exception):
    pass


class Disk:
    """Keeps what is offered as files would, and is killed after a number of states."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.kept: dict[str, State] = {}
        self.times = 0
        self.done: list[int] = []

    def advance(self, what: str, done: int, total: int, detail: str = "") -> None:
        assert 0 < done <= total == 21
        self.done.append(done)

    def note(self, message: str) -> None:
        raise AssertionError(message)

    def keep(self, key: str, state: Callable[[], State], *, final: bool = False) -> None:
        if self.times == self.limit:
            raise KilledError
        self.times += 1
        # A clock allows only some of the states that are offered in between.
        if final or self.times % 2:
            self.kept[key] = {name: value.clone() for name, value in state().items()}

    def restore(self, key: str) -> State | None:
        return self.kept.get(key)


def whims(changes: dict[str, Any]) -> dict[str, Any]:
    """Everything that a batch has to remember from one turn to the next."""

    def draw(step: int, generator: torch.Generator, count: int) -> dict[str, Tensor]:
        drawn = {"noise": torch.randn(count, 2, 5, 6, generator=generator)}
        return drawn | ({"other.0": torch.ones(())} if step % 3 == 1 else {})

    def context(start: BatchStart) -> dict[str, Tensor]:
        seen = [start.look(images).logits.mean() for images, _ in start.earlier]
        own = torch.rand((), generator=start.generator)
        return {"centre": torch.stack([own, *seen]).sum()}

    def watched(seen: Seen) -> Tensor:
        loss = objective(seen) + (seen.logits - seen.drawn["centre"]).square().mean()
        for other in seen.others:
            loss = loss + deep_inversion_statistics(other.layers)
        return loss

    return {
        "draw": draw,
        "augment": lambda images, drawn: images + 0.3 * drawn["noise"],
        "context": context,
        "context_follows": True,
        "objective": watched,
        "others": (teacher(seed=1),),
        "targets": labels,
    } | changes


@pytest.mark.parametrize("harvest", [{"snapshots": (2, 5)}, {"keep_best": True}, {}])
def test_killed_at_any_moment_it_ends_with_the_same_images(harvest: dict[str, Any]) -> None:
    count = 18 if "snapshots" in harvest else 9
    whole = Disk()
    expected = run(count, whole, **whims(harvest))
    assert whole.done == sorted(whole.done)
    for limit in range(0, whole.times, 3):
        disk = Disk(limit)
        with pytest.raises(KilledError):
            run(count, disk, **whims(harvest))
        disk.limit, reached = None, max(disk.done, default=0)
        disk.done.clear()
        found = run(count, disk, **whims(harvest))
        # It went on within a turn of where it was; it did not start again.
        assert disk.done[0] >= reached - 1
        assert torch.equal(found.images, expected.images), limit
        assert torch.equal(found.targets, expected.targets)


def test_killed_twice_it_ends_with_the_same_images() -> None:
    expected = run(9, Disk(), **whims({}))
    disk = Disk(7)
    for limit in (7, 16):
        disk.limit = limit
        with pytest.raises(KilledError):
            run(9, disk, **whims({}))
    disk.limit = None
    assert torch.equal(run(9, disk, **whims({})).images, expected.images)


def test_of_a_set_the_last_images_are_kept_as_the_others_were_matched_to_them() -> None:
    # Steps so large that the last loss is not the smallest.
    wild = {"groups": (Group(Adam(), Plateau(0.8)),)}
    last = run(9, **wild).images
    assert torch.equal(run(9, keep_best=True, **wild).images, last)
    # Alone, or as the only batch of a set, the best ones are.
    for count, turn in ((9, None), (3, 2)):
        ends = [run(count, keep_best=best, joint_steps=turn, **wild).images for best in (0, 1)]
        assert not torch.equal(*ends)


def test_states_that_do_not_fit_into_memory_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(9, **whims({}))
    read: list[int] = []

    class Tight(parked_states.ParkedStates):
        def __init__(self) -> None:
            super().__init__(most_bytes=0)

        def get(self, batch: int) -> State:
            assert not self._held
            read.append(batch)
            return super().get(batch)

    monkeypatch.setattr(turns, "ParkedStates", Tight)
    assert torch.equal(run(9, **whims({})).images, expected.images)
    assert set(read) == {0, 1, 2}


def test_a_context_that_follows_is_made_anew_each_turn_from_the_same_random_numbers() -> None:
    drawn: list[float] = []
    beside: list[int] = []
    newest: list[float] = []

    def context(start: BatchStart) -> dict[str, Tensor]:
        drawn.append(torch.rand((), generator=start.generator).item())
        beside.append(len(start.earlier))
        newest.append(sum(images.sum().item() for images, _ in start.earlier))
        assert all(targets is not None for _, targets in start.earlier)
        return {}

    run(9, context=context, context_follows=True, targets=labels)
    # Four rounds of three batches; in the first one only those before have had a turn.
    assert beside == [0, 1, 2] + [2] * 9
    assert drawn == drawn[:3] * 4
    assert len(set(newest[2:])) == len(newest[2:])


def test_a_context_that_does_not_follow_is_made_once_per_batch() -> None:
    made: list[int] = []

    def context(start: BatchStart) -> dict[str, Tensor]:
        made.append(len(start.earlier))
        return {}

    run(9, context=context, context_follows=False)
    assert made == [0, 1, 2]


def test_the_images_themselves_are_matched_as_one_more_layer() -> None:
    seen_elsewhere: list[tuple[float, float]] = []

    def watched(seen: Seen) -> Tensor:
        own = seen.image_statistics()
        assert own.elsewhere is not None
        images = own.elsewhere.images.item()
        seen_elsewhere.append((images, own.elsewhere.square.sum().item()))
        return own.batch_variance(correction=0).sum() + objective(seen)

    run(9, objective=watched, steps=2)
    assert [images for images, _ in seen_elsewhere] == [0.0, 0.0, 3.0, 3.0, 6.0, 6.0]
    # Noise of spread 1 in two channels, a step or two later.
    assert all(1.0 < square < 3.0 for images, square in seen_elsewhere if images)


def test_a_teacher_that_is_not_asked_keeps_what_it_saw_before() -> None:
    known: list[float] = []

    def draw(step: int, generator: torch.Generator, count: int) -> dict[str, Tensor]:
        # In the first step of a turn only.
        return {"other.0": torch.ones(())} if step % 2 == 0 else {}

    def watched(seen: Seen) -> Tensor:
        known.append(seen.drawn["elsewhere.other.0.images"].item())
        return objective(seen)

    run(9, draw=draw, objective=watched, others=(teacher(seed=1),), steps=4)
    assert known == [0.0, 0.0, 3.0, 3.0] + [6.0] * 8


@pytest.mark.slow
def test_the_compiled_objective_gives_the_eager_images() -> None:
    torch._dynamo.reset()
    compiled = Execution(compiled=True, dtype=torch.float32)
    found = invert(method(), teacher(), 9, seed=3, settings={}, execution=compiled)
    assert found.history[0]["compiled"] is True
    torch.testing.assert_close(found.images, run().images, rtol=1e-3, atol=1e-3)
