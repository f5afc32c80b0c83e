"""The Pareto curve: positions, round ticks, and every plan in it."""

import re
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from emptyset.report.pareto import (
    Axis,
    cost_text,
    layer_rows,
    operations,
    pareto_chart,
    plan_rows,
    ticks,
)


def plan(cost: float, predicted: float, measured: float | None = None) -> dict[str, Any]:
    return {
        "cost": cost, "predicted": predicted, "measured": measured, "size_bytes": 1500.0,
        "packed_bytes": 1200.0, "average_bits": 4.4, "bit_operations": 1_310_000_000,
        "overrides": {},
    }  # fmt: skip


@pytest.fixture
def found() -> dict[str, Any]:
    return {
        "budget": "4.5bits", "kind": "average_bits", "relative": False, "limit": 4.5, "images": 7,
        "bits": "w8a8",
        "layers": [
            {"name": "stem", "weights": 1200, "chosen": 0,
             "options": [{"weights": 8, "inputs": None, "damage": 1e-6}]},
            {"name": "body", "weights": 300, "chosen": 1,
             "options": [{"weights": 4, "inputs": 8, "damage": 0.5},
                         {"weights": 8, "inputs": 8, "damage": 0.01}]},
        ],
        "chosen": plan(4.4, 0.02, 0.03),
        "uniform": {"w4a8": plan(4.0, 0.51, 0.7), "w8a8": plan(8.0, 0.0, 1e-7)},
        "frontier": [plan(4.0, 0.51), plan(4.4, 0.02), plan(8.0, 0.0)],
    }  # fmt: skip


def test_an_axis_maps_its_ends_and_its_middle() -> None:
    axis = Axis(low=2.0, high=6.0, start=300.0, stop=100.0)
    assert [axis.at(value) for value in (2.0, 6.0, 4.0, 5.0)] == [300.0, 100.0, 200.0, 150.0]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1.9, 8.1, [2, 3, 4, 5, 6, 7, 8]),
        (0.48, 1.02, [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        (130_000, 270_000, [140_000, 160_000, 180_000, 200_000, 220_000, 240_000, 260_000]),
        (0.0, 0.0035, [0.0, 0.0005, 0.001, 0.0015, 0.002, 0.0025, 0.003, 0.0035]),
    ],
)
def test_ticks_are_round_and_within(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_the_picture_is_whole_and_loads_nothing(found: dict[str, Any]) -> None:
    chart = pareto_chart(found)
    root = ET.fromstring(chart)
    assert "href" not in chart
    assert root.tag == "svg"
    places = [float(value) for value in re.findall(r'(?:cx|x1|x2)="([\d.-]+)"', chart)]
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    assert all(0 <= place <= width for place in places)
    heights = [float(value) for value in re.findall(r'(?:cy|y1|y2)="([\d.-]+)"', chart)]
    assert all(0 <= place <= height for place in heights)
    line = root.find("polyline")
    assert line is not None
    points = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    assert len(points) == 3
    # To the right is dearer, down is better.
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert [y for _, y in points] == sorted(y for _, y in points)
    for text in ["w4a8", "w8a8", "chosen", "budget 4.5bits", "measured 0.03 nat"]:
        assert text in chart


def test_one_plan_alone_is_a_picture_too(found: dict[str, Any]) -> None:
    found |= {"frontier": [plan(4.0, 0.5)], "uniform": {"w4a8": plan(4.0, 0.5, 0.6)}}
    found |= {"chosen": plan(4.0, 0.5, 0.6), "limit": 4.0}
    ET.fromstring(pareto_chart(found))


def test_a_budget_far_above_every_plan_does_not_shrink_the_curve(found: dict[str, Any]) -> None:
    found |= {"limit": 80.0, "budget": "80bits"}
    assert "80bits" not in pareto_chart(found)


def test_names_are_escaped(found: dict[str, Any]) -> None:
    found["budget"] = "4.5<b>"
    ET.fromstring(pareto_chart(found))


def test_the_table_is_sorted_by_cost_and_marks_the_chosen(found: dict[str, Any]) -> None:
    rows = plan_rows(found)
    assert [row.name for row in rows] == ["w4a8", "chosen for 4.5bits", "w8a8"]
    assert [row.chosen for row in rows] == [False, True, False]
    assert (rows[1].cost, rows[1].size, rows[1].operations) == (
        "4.40 bits", "1.5 kB", "1.31 GBOPs"
    )  # fmt: skip


def test_layers_show_their_damage_at_every_width(found: dict[str, Any]) -> None:
    widths, rows = layer_rows(found)
    assert widths == ["w8 float", "w4a8", "w8a8"]
    assert rows[0]["fixed"]
    assert rows[0]["cells"] == [(1e-6, True), (None, False), (None, False)]
    assert rows[1]["cells"] == [(None, False), (0.5, False), (0.01, True)]


def test_costs_are_told_in_the_unit_of_the_budget(found: dict[str, Any]) -> None:
    assert cost_text(found, 4.413) == "4.41 bits"
    assert cost_text(found | {"kind": "size"}, 1_500.0) == "1.5 kB"
    assert cost_text(found | {"kind": "size", "relative": True}, 0.5971) == "0.597 of 8 bits"
    assert cost_text(found | {"kind": "bit_operations"}, 2.4e12) == "2.4 TBOPs"
    assert operations(512) == "512 BOPs"
