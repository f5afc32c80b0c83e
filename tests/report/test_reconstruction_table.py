"""The tables of errors: texts of numbers, and what was not measured."""

from emptyset.report.reconstruction_table import BlockRow, block_tables


def test_each_record_of_blocks_is_a_table_and_others_are_passed_over() -> None:
    blocks = [
        {"block": "stem", "start": 8.0, "final": 2.0, "kept": True, "steps": 20000},
        {"block": "units.0", "start": 0.0, "final": 0.0, "kept": True, "steps": 0},
        {"block": "head", "start": None, "final": None, "kept": False, "steps": 7},
    ]
    records = [
        {"refiner": "distill", "epochs": 3},
        {"refiner": "brecq", "course": "brecq.weights", "blocks": blocks},
        {"refiner": "genie", "course": "genie", "blocks": blocks[:1]},
    ]
    first, second = block_tables(records)
    assert (first.course, second.course) == ("brecq.weights", "genie")
    assert first.rows == [
        BlockRow("stem", "8", "2", "25.0 %", "20,000", True),
        BlockRow("units.0", "0", "0", "–", "0", True),
        BlockRow("head", "–", "–", "–", "7", False),
    ]
    assert second.rows == first.rows[:1]
    assert block_tables([]) == []
