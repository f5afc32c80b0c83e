"""What inputs and targets take: as told beforehand, and no more than what is left for them."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.graph.blocks import find_blocks
from emptyset.graph.memory import bytes_kept
from emptyset.graph.student import Student
from emptyset.images.image_set import ImageSet
from emptyset.monitor import SILENT
from emptyset.reconstruction import notes
from emptyset.reconstruction.caches import CacheRoom, Rows
from emptyset.reconstruction.chain import reconstruct
from emptyset.reconstruction.config import Course, ReconstructionConfig
from emptyset.reconstruction.memory import cache_limit, measured_sizes, row_bytes
from emptyset.reconstruction.units import units_of
from emptyset.teachers.teacher import Teacher

COURSES: dict[str, dict[str, Any]] = {
    "adaround": {"by_layer": True, "activations": False},
    "brecq": {"activations": False, "prefix_activations": False},
    "brecq, weighted": {
        "activations": False, "prefix_activations": False, "weighting": "fisher",
    },
    "brecq, activations": {"rounding": False, "activation_scale_rate": 1e-3, "inputs": "float"},
    "qdrop": {"activation_scale_rate": 1e-3, "inputs": "mixed", "kept": 0.5},
    "mixed by layer": {"by_layer": True, "inputs": "mixed", "kept": 0.5},
    "float by layer": {"by_layer": True, "inputs": "float"},
}  # fmt: skip


class Waist(nn.Module):
    """Wide in the middle, or wide at both ends: the most room is needed at another moment."""

    def __init__(self, *channels: int) -> None:
        super().__init__()
        pairs = zip((3, *channels[:-1]), channels, strict=True)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairs)
        self.linear = nn.Linear(channels[-1], 5)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.linear(x.mean((2, 3)))


def course_of(kind: str, **settings: Any) -> Course:
    config = ReconstructionConfig(steps=2, batch_size=6, **settings)
    return Course(name="test", config=config, steps=2, **COURSES[kind])


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Bytes held after every change."""
    found, alive = [0], dict[int, int]()
    made, freed = CacheRoom.rows, CacheRoom.free

    def rows(self: CacheRoom, shape: tuple[int, ...]) -> Rows:
        one = made(self, shape)
        alive[id(one)] = one.nbytes
        found.append(sum(alive.values()))
        return one

    def free(self: CacheRoom, one: Rows) -> None:
        del alive[id(one)]
        freed(self, one)

    monkeypatch.setattr(CacheRoom, "rows", rows)
    monkeypatch.setattr(CacheRoom, "free", free)
    yield found
    assert not alive


@pytest.mark.parametrize("kind", COURSES)
@pytest.mark.parametrize("net", [None, (4, 9, 2), (9, 2, 7), (2, 9, 10, 8, 1)])
def test_what_is_told_beforehand_is_what_is_held(
    kind: str, net: tuple[int, ...] | None, teacher: Teacher, teacher_of: Callable[..., Teacher],
    student_of: Callable[..., Student], images: ImageSet, held: list[int], disk: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    student, heard = student_of(teacher_of(Waist(*net)) if net else teacher), disk()
    monkeypatch.setattr(notes, "gigabytes", lambda size: f"{size} bytes")
    reconstruct(student, images, course_of(kind), seed=3, monitor=heard)
    (told,) = (note for note in heard.notes if "inputs and targets" in note)
    assert f"take up to {max(held)} bytes" in told


def test_by_hand_the_most_is_held_in_the_middle(
    teacher_of: Callable[..., Teacher], student_of: Callable[..., Student], images: ImageSet,
    held: list[int],
) -> None:  # fmt: skip
    """While the wide block's outputs are computed for the next one, its targets are held too."""
    student = student_of(teacher_of(Waist(4, 9, 2)))
    reconstruct(student, images, course_of("qdrop"), seed=3, monitor=SILENT)
    assert max(held) == 4 * 22 * 80 * (4 + 9 + 9)


@pytest.fixture
def sizes_of(student_of: Callable[..., Student]) -> Callable[..., Any]:
    def measure(teacher: Teacher) -> tuple[Student, list, list]:
        student = student_of(teacher)
        blocks = find_blocks(student)
        units = [units_of(student, block, by_layer=False) for block in blocks]
        return student, blocks, measured_sizes(student, blocks, units)

    return measure


def test_caches_get_what_the_rest_of_the_process_leaves(
    teacher: Teacher, sizes_of: Callable[..., Any]
) -> None:
    student, _, sizes = sizes_of(teacher)

    def limit(memory: float, batch: int = 32, images: int = 0) -> int:
        course = course_of("brecq")
        return cache_limit(student, sizes, course, memory=memory, batch=batch, images=images)

    assert limit(4.0) - limit(3.0) == 1 << 30
    assert limit(4.0, images=5_000) == limit(4.0) - 5_000
    assert limit(4.0, batch=64) < limit(4.0) < 3 << 30
    assert limit(0.5) == 0


def test_weighting_needs_room_for_a_backward_through_all_that_follows(
    teacher: Teacher, sizes_of: Callable[..., Any]
) -> None:
    student, blocks, sizes = sizes_of(teacher)
    plain, weighted = (
        cache_limit(student, sizes, course_of(kind), memory=4.0, batch=7, images=0)
        for kind in ("brecq", "brecq, weighted")
    )
    kept = [bytes_kept(block.module.graph) for block in blocks]
    assert [block.kept for block in sizes] == kept
    assert plain - weighted == 3 * 7 * (sum(kept[1:]) - max(kept))


def test_on_an_accelerator_rows_take_what_is_free_there(
    teacher: Teacher, sizes_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    student, _, sizes = sizes_of(teacher)
    course = course_of("qdrop")
    on_host = cache_limit(student, sizes, course, memory=4.0, batch=7, images=5000)
    working = (3 << 30) - 5000 - on_host
    monkeypatch.setattr("emptyset.graph.room.free_on_accelerator", lambda device: 1 << 26)
    for memory in (0.1, 4.0):
        found = cache_limit(student, sizes, course, memory=memory, batch=7, images=5000)
        assert found == (1 << 26) - working


def test_rows_that_do_not_fit_on_an_accelerator_go_to_files(
    teacher: Teacher, student_of: Callable[..., Student], sizes_of: Callable[..., Any],
    images: ImageSet, monkeypatch: pytest.MonkeyPatch, disk: Any,
) -> None:  # fmt: skip
    def learnt(free: int) -> tuple[dict[str, Tensor], str]:
        monkeypatch.setattr("emptyset.graph.room.free_on_accelerator", lambda device: free)
        student, heard = student_of(teacher), disk()
        reconstruct(student, images, course_of("qdrop"), seed=3, monitor=heard)
        return student.state_dict(), heard.notes[0]

    most = 1 << 40
    monkeypatch.setattr("emptyset.graph.room.free_on_accelerator", lambda device: most)
    student, _, sizes = sizes_of(teacher)
    working = most - cache_limit(student, sizes, course_of("qdrop"), memory=1.0, batch=6, images=0)
    (all_there, told), (partly, told_less) = learnt(most), learnt(working + 60_000)
    assert told.endswith("in memory.")
    assert told_less.endswith("fit into memory; the rest goes to files.")
    assert all(torch.equal(value, partly[name]) for name, value in all_there.items())


def test_rows_count_in_float32() -> None:
    assert row_bytes((6, 8, 10), (5,)) == 4 * (480 + 5)


def test_blocks_that_are_too_long_to_be_weighted_are_told(
    teacher: Teacher, student_of: Callable[..., Student], images: ImageSet, disk: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def told(kind: str) -> list[str]:
        heard = disk()
        reconstruct(student_of(teacher), images, course_of(kind), seed=3, monitor=heard)
        return [note for note in heard.notes if "weighting" in note]

    assert told("brecq, weighted") == []
    monkeypatch.setattr("emptyset.graph.blocks.LARGEST_BLOCK", 1)
    assert told("brecq") == []
    (note,) = told("brecq, weighted")
    assert note.startswith("test: units.0, units.1, units.2 ")
    assert "weighting 'fisher' is not used" in note


@pytest.mark.parametrize(
    ("kind", "passes", "of_the_last"),
    [
        # Targets, error before and after, inputs of the next block.
        ("qdrop", 4, 3),
        ("brecq", 4, 3),
        # What follows reads the targets themselves.
        ("brecq, activations", 3, 3),
    ],
)
def test_each_block_is_run_for_itself_and_never_as_a_prefix(
    kind: str, passes: int, of_the_last: int, teacher: Teacher,
    student_of: Callable[..., Student], images: ImageSet,
) -> None:  # fmt: skip
    """Batches that go through each block, counted at its first weight."""
    student, counts = student_of(teacher), dict[str, int]()

    def count(block: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counts[block] = counts.get(block, 0) + 1

        return hook

    blocks = find_blocks(student)
    for block in blocks:
        weight = student.quantizers[f"{block.layers[0]}.weight"]
        weight.register_forward_hook(count(block.name))
    reconstruct(student, images, course_of(kind), seed=3, monitor=SILENT)
    # 22 images are four batches of 6; sizes are measured with one image, as unit and as block.
    expected = {block.name: 4 * passes + 2 for block in blocks}
    expected[blocks[-1].name] = 4 * of_the_last + 2
    assert counts == expected
