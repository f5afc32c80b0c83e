"""What a method may ask of the engine beside its loss: context, finish, filter, swing, others."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from emptyset.images.low_pass import low_pass
from emptyset.inversion.compilation import Execution
from emptyset.inversion.engine import invert
from emptyset.inversion.frozen_teacher import FrozenTeacher
from emptyset.inversion.labels import class_count
from emptyset.inversion.method import BatchStart, Group, Method, Seen
from emptyset.inversion.schedules import Plateau
from emptyset.inversion.standard_units import standard_units
from emptyset.inversion.swing import draw_offsets, shifted, strided_convolutions, swung
from emptyset.inversion.updates import Adam
from emptyset.monitor import State
from emptyset.teachers.teacher import InputSpec, Teacher

EXACT = Execution(compiled=False, dtype=torch.float32)


def teacher(seed: int = 0, mean: float = 0.5, std: float = 0.25) -> Teacher:
    generator = torch.Generator().manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 2 * 3, 3)
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    spec = InputSpec((2, 6, 7), (mean,) * 2, (std,) * 2)
    return Teacher(f"test:{seed}", module.requires_grad_(False).eval(), spec)


def objective(seen: Seen) -> Tensor:
    return seen.logits.square().mean() + seen.images.square().mean()


def method(**changes: Any) -> Method:
    settings: dict[str, Any] = {
        "name": "test",
        "objective": objective,
        "groups": (Group(Adam(), Plateau(0.2)),),
        "steps": 3,
        "batch_size": 4,
    }
    return Method(**(settings | changes))


def run(given: Teacher, count: int = 4, **changes: Any) -> Any:
    return invert(method(**changes), given, count, seed=3, settings={}, execution=EXACT)


def test_a_context_sees_the_batches_before_in_standardised_units() -> None:
    # Pixels in 0..255: the teacher's units are far from the standardised ones.
    given = teacher(mean=0.0, std=1 / 255)
    seen_before: list[list[tuple[int, float]]] = []
    in_objective: list[float] = []

    def context(start: BatchStart) -> dict[str, Tensor]:
        assert start.shape == (4, 2, 6, 7)
        seen_before.append([(len(x), x.abs().max().item()) for x, _ in start.earlier])
        return {"batch": torch.tensor(float(len(start.earlier)))}

    def watched(seen: Seen) -> Tensor:
        in_objective.append(seen.drawn["batch"].item())
        return objective(seen)

    found = run(given, 11, context=context, objective=watched)
    assert found.images.abs().max() > 50
    assert [[n for n, _ in batch] for batch in seen_before] == [[], [4], [4, 4]]
    assert all(largest < 10 for batch in seen_before for _, largest in batch)
    assert in_objective == [0.0] * 3 + [1.0] * 3 + [2.0] * 3


def test_a_look_is_the_teachers_own_forward() -> None:
    given = teacher(mean=0.0, std=1 / 255)
    images = torch.randn(3, 2, 6, 7, generator=torch.Generator().manual_seed(0))
    seen = FrozenTeacher(given).look(images)
    own = (images * 0.25 + 0.45) * 255
    torch.testing.assert_close(seen.logits, given.module(own))
    assert seen.features is not None
    torch.testing.assert_close(seen.features, given.module[:3](own))  # type: ignore[index]
    torch.testing.assert_close(
        seen.layers[0].shift,
        given.module[0](own).mean((2, 3)) - given.module[1].running_mean,  # type: ignore[index]
    )


def test_finished_images_and_targets_can_be_changed_and_filtered() -> None:
    given = teacher()
    plain = run(given, targets=lambda generator, count: torch.arange(count) % 3)

    def finish(
        images: Tensor, targets: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        assert targets is not None
        return -images, nn.functional.one_hot(targets, 3).float()

    changed = run(
        given, targets=lambda generator, count: torch.arange(count) % 3, finish=finish, low_pass=2.0
    )
    torch.testing.assert_close(changed.images, low_pass(-plain.images, 2.0))
    assert torch.equal(changed.targets.argmax(1), plain.targets)


def test_further_teachers_run_only_where_drawn_and_see_the_same_pixels() -> None:
    given, other = teacher(), teacher(seed=1, mean=0.3, std=0.2)
    seen_by_others: list[Tensor | None] = []

    def draw(step: int, generator: torch.Generator, count: int) -> dict[str, Tensor]:
        return {"other.0": torch.ones(())} if step == 1 else {}

    def watched(seen: Seen) -> Tensor:
        if not seen.others:
            seen_by_others.append(None)
            return objective(seen)
        pixels = seen.images.detach() * 0.25 + 0.5
        torch.testing.assert_close(
            seen.others[0].logits.detach(), other.module((pixels - 0.3) / 0.2)
        )
        assert len(seen.others[0].layers) == 1
        seen_by_others.append(seen.others[0].logits)
        return objective(seen) + seen.others[0].logits.square().mean()

    run(given, others=(other,), draw=draw, objective=watched)
    assert [x is None for x in seen_by_others] == [True, False, True]


@pytest.mark.parametrize("offset", [(0, 0), (1, 1), (2, 0)])
def test_a_swing_is_a_crop_of_the_reflected_image(offset: tuple[int, int]) -> None:
    x = torch.arange(12.0).view(1, 1, 3, 4)
    rows = [[1, 0, 1, 2, 1][offset[0] + i] for i in range(3)]
    columns = [[1, 0, 1, 2, 3, 2][offset[1] + j] for j in range(4)]
    expected = [[x[0, 0, i, j].item() for j in columns] for i in rows]
    assert shifted(x, torch.tensor(offset))[0, 0].tolist() == expected


@pytest.mark.parametrize("size", [(2, 2), (3, 2), (4, 7)])
def test_gradients_go_back_to_the_pixels_that_a_swing_shows(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *size, generator=generator, requires_grad=True)
    slope = torch.randn(x.shape, generator=generator)
    whole = torch.compile(shifted, fullgraph=True, backend="aot_eager", dynamic=False)
    for down, right in itertools.product(range(3), repeat=2):
        padded = nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")
        crop = padded[:, :, down : down + size[0], right : right + size[1]]
        (expected,) = torch.autograd.grad(crop, x, slope)
        for way in (shifted, whole):
            found = way(x, torch.tensor([down, right]))
            torch.testing.assert_close(found, crop)
            torch.testing.assert_close(torch.autograd.grad(found, x, slope)[0], expected)


def test_strided_convolutions_swing_inside_the_block_only() -> None:
    module = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1, stride=2)).eval()
    assert strided_convolutions(module) == [module[1]]
    x = torch.randn(1, 1, 5, 6, generator=torch.Generator().manual_seed(0))
    plain = module(x)
    expected = module[1](shifted(module[0](x), torch.tensor([2, 0])))
    with swung(module) as offsets:
        assert torch.equal(module(x), plain)
        offsets[:] = [torch.tensor([[2, 0]])]
        assert torch.equal(module(x), expected)
        assert not torch.equal(module(x), plain)
    assert torch.equal(module(x), plain)
    assert not module[1]._forward_pre_hooks


def test_offsets_are_each_of_nine() -> None:
    drawn = draw_offsets(400, torch.Generator().manual_seed(0))
    assert {tuple(pair) for pair in drawn.tolist()} == {(i, j) for i in range(3) for j in range(3)}


def test_an_engine_that_swings_shows_the_teacher_shifted_features() -> None:
    given, logits = teacher(), []

    def watched(seen: Seen) -> Tensor:
        logits.append((seen.images.detach().clone(), seen.logits.detach()))
        return objective(seen)

    def draw(step: int, generator: torch.Generator, count: int) -> dict[str, Tensor]:
        return {"swing": torch.tensor([[0, 2]])}

    run(given, swing=True, draw=draw, objective=watched)
    for images, found in logits:
        torch.testing.assert_close(found, given.module(shifted(images, torch.tensor([0, 2]))))


def test_units_go_there_and_back_and_know_black_and_white() -> None:
    units = standard_units(InputSpec((1, 4, 4), (0.0,), (1 / 255,)))
    images = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(units.from_teacher(units.to_teacher(images)), images)
    low, high = units.pixel_range()
    ends = units.to_teacher(torch.tensor([low[0], high[0]]).view(2, 1, 1, 1)).flatten()
    assert ends.tolist() == pytest.approx([0.0, 255.0], abs=1e-4)


def test_classes_are_counted_by_asking() -> None:
    assert class_count(teacher(), "test") == 3


def test_states_of_a_context_are_not_kept() -> None:
    kept: list[State] = []

    class Keeping:
        def advance(self, what: str, done: int, total: int, detail: str = "") -> None: ...
        def note(self, message: str) -> None: ...
        def restore(self, key: str) -> State | None: ...
        def keep(self, key: str, state: Callable[[], State], *, final: bool = False) -> None:
            kept.append(state())

    changed = method(context=lambda start: {"mark": torch.ones(())})
    invert(changed, teacher(), 4, seed=0, settings={}, execution=EXACT, monitor=Keeping())
    assert not any("mark" in name for state in kept for name in state)
