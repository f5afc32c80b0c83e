"""The engine: against a plain loop, and its promises about counts, snapshots and errors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from emptyset.errors import ImagesError, UnsupportedModelError
from emptyset.inversion import compilation, engine
from emptyset.inversion.compilation import Execution
from emptyset.inversion.engine import invert
from emptyset.inversion.method import Group, Method, Seen
from emptyset.inversion.recorded_inputs import recorded_inputs
from emptyset.inversion.schedules import Cosine, Plateau
from emptyset.inversion.updates import Adam
from emptyset.monitor import SILENT, State
from emptyset.teachers.teacher import InputSpec, Teacher

EXACT = Execution(compiled=False, dtype=torch.float32)


def network() -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 3 * 4, 3)
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return module.requires_grad_(False).eval()


def teacher(mean: float = 0.5, std: float = 0.25) -> Teacher:
    return Teacher("test:net", network(), InputSpec((2, 5, 6), (mean,) * 2, (std,) * 2))


def objective(seen: Seen) -> Tensor:
    (layer,) = seen.layers
    loss = layer.shift.square().sum() + seen.logits.square().mean() + seen.images.square().mean()
    if seen.targets is not None:
        loss = loss + nn.functional.cross_entropy(seen.logits, seen.targets)
    return loss


def method(**changes: Any) -> Method:
    settings: dict[str, Any] = {
        "name": "test",
        "objective": objective,
        "groups": (Group(Adam(), Plateau(0.2, patience=2)),),
        "steps": 9,
        "batch_size": 4,
    }
    return Method(**(settings | changes))


def labels(generator: torch.Generator, count: int) -> Tensor:
    return torch.randint(3, (count,), generator=generator)


def test_does_what_a_plain_loop_with_torchs_own_optimizer_does() -> None:
    given = teacher()
    found = invert(method(targets=labels), given, 4, seed=3, settings={}, execution=EXACT)

    seed = torch.randint(2**62, (1,), generator=torch.Generator().manual_seed(3)).item()
    generator = torch.Generator().manual_seed(int(seed))
    targets = labels(generator, 4)
    images = torch.randn(4, 2, 5, 6, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([images], lr=0.2)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=2, min_lr=1e-4)
    module = network()
    for _ in range(9):
        before_norm = module[0](images)
        logits = module(images)
        shift = before_norm.mean((2, 3)) - module[1].running_mean
        loss = shift.square().sum() + logits.square().mean() + images.square().mean()
        loss = loss + nn.functional.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step(loss.item())
    torch.testing.assert_close(found.images, images.detach(), rtol=1e-4, atol=1e-5)
    assert found.targets is not None
    assert torch.equal(found.targets, targets)


@pytest.mark.parametrize("rate", [0.3, 1e-3])
def test_the_plateau_is_torchs(rate: float) -> None:
    generator = torch.Generator().manual_seed(0)
    losses = [10 * 0.97**i + torch.rand((), generator=generator).item() for i in range(120)]
    schedule = Plateau(rate, factor=0.3, patience=4, minimum=1e-4)
    state = schedule.start(torch.device("cpu"))
    weight = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=rate)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.3, patience=4, min_lr=1e-4
    )
    for number, loss in enumerate(losses):
        schedule.advance(state, torch.tensor(loss), number + 1, len(losses))
        theirs.step(loss)
        assert state["rate"].item() == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-5)


def test_the_cosine_starts_full_is_half_in_the_middle_and_ends_at_the_final_rate() -> None:
    schedule = Cosine(0.8, final=0.2)
    state = schedule.start(torch.device("cpu"))
    rates = [state["rate"].item()]
    for number in range(1, 11):
        schedule.advance(state, torch.tensor(1.0), number, 10)
        rates.append(state["rate"].item())
    assert rates[0] == pytest.approx(0.8)
    assert rates[5] == pytest.approx(0.5)
    assert rates[10] == pytest.approx(0.2)
    assert rates == sorted(rates, reverse=True)


def test_images_of_a_trivially_scaled_teacher_come_in_its_own_units() -> None:
    # The same network behind two scalings: pixels in 0..255 and standardised photographs.
    plain = teacher(0.45, 0.25)
    wide_module = nn.Sequential(network())
    wide_module[0][0].weight.div_(255 * 0.25)
    wide_module[0][0].bias.sub_(wide_module[0][0].weight.sum((1, 2, 3)) * 255 * 0.45)
    wide = Teacher("test:wide", wide_module, InputSpec((2, 5, 6), (0.0,) * 2, (1 / 255,) * 2))
    a = invert(method(), plain, 3, seed=1, settings={}, execution=EXACT).images
    b = invert(method(), wide, 3, seed=1, settings={}, execution=EXACT).images
    torch.testing.assert_close(b / 255, a * 0.25 + 0.45, rtol=1e-3, atol=1e-3)


def test_snapshots_are_what_shorter_runs_end_with() -> None:
    still = {"groups": (Group(Adam(), Plateau(0.1)),)}
    every = invert(
        method(steps=6, snapshots=(2, 5), **still), teacher(), 7, seed=2, settings={},
        execution=EXACT,
    )  # fmt: skip
    assert len(every) == 7
    ends = [
        invert(method(steps=s, **still), teacher(), 4, seed=2, settings={}, execution=EXACT)
        for s in (2, 5)
    ]
    torch.testing.assert_close(every.images[:4], ends[0].images)
    torch.testing.assert_close(every.images[4:], ends[1].images[:3])


def test_keeping_the_best_gives_the_images_of_the_smallest_loss() -> None:
    losses: list[float] = []

    def watched(seen: Seen) -> Tensor:
        loss = objective(seen)
        losses.append(loss.item())
        return loss

    # Steps so large that the last loss is not the smallest.
    wild = {"groups": (Group(Adam(), Plateau(0.8)),), "objective": watched, "keep_best": True}
    best = invert(method(**wild), teacher(), 4, seed=0, settings={}, execution=EXACT)
    first = losses.index(min(losses))
    assert first < len(losses) - 1
    if first == 0:
        pytest.fail("the start is already the best; the test shows nothing")
    upto = method(groups=wild["groups"], steps=first)
    expected = invert(upto, teacher(), 4, seed=0, settings={}, execution=EXACT)
    torch.testing.assert_close(best.images, expected.images)


def test_random_numbers_reach_the_augmentation_and_the_objective() -> None:
    def draw(step: int, generator: torch.Generator, count: int) -> dict[str, Tensor]:
        return {"shift": torch.randint(1, 5, (1,), generator=generator)}

    def augment(images: Tensor, drawn: Any) -> Tensor:
        return images.roll(int(drawn["shift"]), dims=3)

    seen_shapes = []

    def watched(seen: Seen) -> Tensor:
        seen_shapes.append((seen.drawn["shift"].item(), tuple(seen.images.shape)))
        assert seen.features is not None
        assert seen.features.shape == (4, 48)
        return objective(seen)

    changed = method(draw=draw, augment=augment, objective=watched)
    a = invert(changed, teacher(), 4, seed=0, settings={}, execution=EXACT)
    b = invert(changed, teacher(), 4, seed=0, settings={}, execution=EXACT)
    assert torch.equal(a.images, b.images)
    assert len({shift for shift, _ in seen_shapes}) > 1
    assert {shape for _, shape in seen_shapes} == {(4, 2, 5, 6)}


@pytest.mark.parametrize(("count", "sizes"), [(4, {4}), (5, {3}), (9, {3}), (10, {4})])
def test_all_batches_have_one_size_and_the_count_is_exact(count: int, sizes: set[int]) -> None:
    seen: set[int] = set()

    def watched(observed: Seen) -> Tensor:
        seen.add(len(observed.images))
        return objective(observed)

    found = invert(
        method(objective=watched, steps=1), teacher(), count, seed=0, settings={}, execution=EXACT
    )
    assert len(found) == count
    assert seen == sizes


def test_a_teacher_without_batch_norm_is_refused_with_the_way_out() -> None:
    bare = Teacher(
        "test:bare", nn.Sequential(nn.Flatten(), nn.Linear(60, 3)),
        InputSpec((2, 5, 6), (0.5,) * 2, (0.25,) * 2),
    )  # fmt: skip
    with pytest.raises(UnsupportedModelError, match=r"test:bare.*no BatchNorm layer.*--images DIR"):
        invert(method(), bare, 4, seed=0, settings={})


def test_a_teacher_with_nan_weights_gives_an_error_that_names_the_step() -> None:
    broken = teacher()
    broken.module[0].weight[0, 0, 0, 0] = float("nan")  # type: ignore[index,union-attr]
    with pytest.raises(ImagesError, match=r"not finite after step 1 of batch 1.*NaN"):
        invert(method(), broken, 4, seed=0, settings={}, execution=EXACT)


def test_hooks_are_gone_even_when_the_body_raises() -> None:
    module = network()

    def body() -> None:
        with recorded_inputs([module[1]]) as inputs:
            module(torch.zeros(1, 2, 5, 6))
            assert [(position, x.shape) for position, x in inputs] == [(0, (1, 4, 3, 4))]
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        body()
    assert not module[1]._forward_pre_hooks


class Notes:
    """A monitor that remembers what was said and kept."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.kept: dict[str, State] = {}

    def advance(self, what: str, done: int, total: int, detail: str = "") -> None: ...

    def note(self, message: str) -> None:
        self.notes.append(message)

    def keep(self, key: str, state: Callable[[], State], *, final: bool = False) -> None:
        self.kept[key] = state()

    def restore(self, key: str) -> State | None:
        return self.kept.get(key)


def test_without_a_compiler_it_runs_eagerly_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "worth_compiling", lambda *a, **k: True)
    monkeypatch.setattr(engine, "compiler_found", lambda device: False)
    monitor = Notes()
    found = invert(method(), teacher(), 10, seed=0, settings={}, monitor=monitor)
    assert found.history[0]["compiled"] is False
    assert len(monitor.notes) == 1
    assert "no C++ compiler" in monitor.notes[0]


def test_a_resumed_run_keeps_the_decision_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "has_fast_bfloat16", lambda device: True)
    monitor = Notes()
    invert(method(), teacher(), 4, seed=0, settings={}, monitor=monitor)
    monkeypatch.setattr(engine, "has_fast_bfloat16", lambda device: False)
    again = invert(method(), teacher(), 4, seed=0, settings={}, monitor=monitor)
    assert again.history[0]["dtype"] == "bfloat16"
    fresh = invert(method(), teacher(), 4, seed=0, settings={}, monitor=SILENT)
    assert fresh.history[0]["dtype"] == "float32"


def test_a_network_that_cannot_be_compiled_runs_eagerly_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: Any, **settings: Any) -> Any:
        def broken(*inputs: Any) -> Tensor:
            raise RuntimeError("no such kernel")

        return broken

    monkeypatch.setattr(torch, "compile", fail)
    monkeypatch.setattr(engine, "worth_compiling", lambda *a, **k: True)
    monkeypatch.setattr(engine, "has_fast_bfloat16", lambda device: False)
    monitor = Notes()
    found = invert(method(), teacher(), 10, seed=0, settings={}, monitor=monitor)
    assert found.history[0]["compiled"] is False
    assert len(monitor.notes) == 1
    assert "cannot compile" in monitor.notes[0]
    eager = invert(method(), teacher(), 10, seed=0, settings={}, execution=EXACT)
    assert torch.equal(found.images, eager.images)
    assert not bool(monitor.kept["test.execution"]["compiled"])


class KilledError(Exception):
    pass


class Mortal(Notes):
    """Is killed after a number of kept states."""

    limit: int | None = None

    def keep(self, key: str, state: Callable[[], State], *, final: bool = False) -> None:
        if len(self.notes) == self.limit:
            raise KilledError
        self.notes.append(key)
        self.kept[key] = {name: value.clone() for name, value in state().items()}


@pytest.mark.parametrize("harvest", [{"snapshots": (2, 6)}, {"keep_best": True}])
@pytest.mark.parametrize("limit", [1, 4, 9])
def test_a_killed_run_that_draws_and_harvests_ends_the_same(
    harvest: dict[str, Any], limit: int
) -> None:
    def draw(step: int, generator: torch.Generator, count: int) -> dict[str, Tensor]:
        return {"noise": torch.randn(count, 2, 5, 6, generator=generator)}

    def augment(images: Tensor, drawn: Any) -> Tensor:
        return images + 0.3 * drawn["noise"]

    changed = method(draw=draw, augment=augment, targets=labels, **harvest)
    expected = invert(changed, teacher(), 6, seed=0, settings={}, execution=EXACT)
    monitor = Mortal()
    monitor.limit = limit
    with pytest.raises(KilledError):
        invert(changed, teacher(), 6, seed=0, settings={}, execution=EXACT, monitor=monitor)
    monitor.limit = None
    found = invert(changed, teacher(), 6, seed=0, settings={}, execution=EXACT, monitor=monitor)
    assert torch.equal(found.images, expected.images)
    assert found.targets is not None
    assert expected.targets is not None
    assert torch.equal(found.targets, expected.targets)


def test_compiling_pays_for_much_work_only() -> None:
    def pays(steps: int) -> bool:
        # A ResNet-20 on CIFAR, 64 images at a time, on two threads.
        return compilation.worth_compiling(
            torch.device("cpu"), elements=188_416 * 64, layers=19, steps=steps, threads=2
        )

    assert not pays(16 * 50)
    assert pays(16 * 500)


@pytest.mark.slow
def test_the_compiled_objective_gives_the_eager_images() -> None:
    compiled = Execution(compiled=True, dtype=torch.float32)
    eager = invert(method(), teacher(), 10, seed=0, settings={}, execution=EXACT)
    found = invert(method(), teacher(), 10, seed=0, settings={}, execution=compiled)
    torch.testing.assert_close(found.images, eager.images, rtol=1e-3, atol=1e-3)
