"""Caches: the same values wherever they lie, and never more memory than allowed."""

import pytest
import torch

from emptyset.reconstruction.caches import CacheRoom, Rows

CPU = torch.device("cpu")


def filled(rows: Rows, values: torch.Tensor) -> Rows:
    for start in range(0, len(values), 4):
        rows.write(start, values[start : start + 4])
    return rows


@pytest.mark.parametrize("shape", [(11, 3, 4, 5), (11, 6, 7), (11, 9)])
def test_rows_in_a_file_are_those_in_memory(shape: tuple[int, ...]) -> None:
    values = torch.randn(shape)
    index = torch.tensor([7, 0, 7, 10])
    with (
        CacheRoom(0, half=False, device=CPU) as files,
        CacheRoom(1 << 20, half=False, device=CPU) as room,
    ):
        there, here = filled(files.rows(shape), values), filled(room.rows(shape), values)
        assert (there.place, here.place) == ("disk", "memory")
        for rows in (there, here):
            assert torch.equal(rows.read(2, 9), values[2:9])
            lying = values.permute(0, 2, 3, 1) if len(shape) == 4 else values
            assert torch.equal(rows.chosen(index), lying[index])


def test_what_was_read_stays_when_the_file_is_written_again() -> None:
    with CacheRoom(0, half=False, device=CPU) as files:
        rows = filled(files.rows((5, 2)), torch.ones(5, 2))
        read = rows.read(0, 5)
        filled(rows, torch.zeros(5, 2))
        assert torch.equal(read, torch.ones(5, 2))


def test_pages_that_were_given_back_are_still_in_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emptyset.graph.room._GIVE_BACK_EVERY", 64)
    values = torch.randn(9, 5)
    with CacheRoom(0, half=False, device=CPU) as files:
        rows = filled(files.rows((9, 5)), values)
        for start in range(8):
            assert torch.equal(rows.read(start, start + 2), values[start : start + 2])


def test_half_rounds_to_bfloat16_and_only_where_float32_does_not_fit() -> None:
    shape = (8, 4)  # 128 bytes, 64 in bfloat16
    with CacheRoom(200, half=True, device=CPU) as room:
        first, second, third = (room.rows(shape) for _ in range(3))
        assert [rows.place for rows in (first, second, third)] == ["memory", "half", "disk"]
        values = torch.randn(shape)
        expected = values.to(torch.bfloat16).float()
        assert torch.equal(filled(second, values).read(0, 8), expected)
        assert torch.equal(filled(third, values).read(0, 8), values)


def test_room_that_is_freed_is_used_again() -> None:
    with CacheRoom(128, half=False, device=CPU) as room:
        first = room.rows((8, 4))
        second = room.rows((8, 4))
        assert [first.place, second.place] == ["memory", "disk"]
        room.free(second)
        room.free(first)
        assert room.rows((8, 4)).place == "memory"


def test_rows_are_let_go_of_at_the_end_and_after_a_fault() -> None:
    made: list[Rows] = []

    def use() -> None:
        with CacheRoom(16, half=False, device=CPU) as room:
            made.extend([room.rows((2, 2)), room.rows((5, 2))])
            room.free(made[0])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    assert [rows.place for rows in made] == ["memory", "disk"]
    assert [rows.stored.numel() for rows in made] == [0, 0]
