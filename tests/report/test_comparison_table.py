"""The table of a comparison: only what was measured, in the same words everywhere."""

from typing import Any

import pytest

from emptyset.report.comparison_table import comparison_table, facts, markdown, notes


def row(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name, "method": name, "settings": {}, "folder": f"rows/{name}", "fault": None,
        "remark": None,
        "images": {"count": 1500, "seconds": 20.0, "per_second": 75.0, "steps": 12,
                   "image_iterations": 18_000},
        "quality": {
            "count": 1500, "clip": None,
            "distance": {"sum_l2": 3.14159, "sum_l2_spread": 0.0251, "mean_mse": 0.00123,
                         "mean_mse_spread": None},
            "diversity": {"similarity": 0.5, "similarity_within_class": None,
                          "variance_within_class": 12.345, "class_agreement": 0.875},
        },
        "student": {"agreement": {"share": 0.9123}, "quantized": {"top1": 0.8999},
                    "seconds": 4.26},
    } | changes  # fmt: skip


@pytest.fixture
def result() -> dict[str, Any]:
    return {
        "emptyset": "0", "command": "emptyset compare x", "hash": "ab" * 32, "complete": True,
        "comparison": {"count": 1500, "seed": 3},
        "teacher": {"name": "file:a|b", "weights_hash": "cd" * 32,
                    "accuracy": {"top1": 0.92, "top5": None}},
        "plan": {"name": "every_layer", "bits": "w4a4", "layers": 3, "float_inputs": []},
        "refine": ["calibrate", "distill"], "budget": "18,000 image-iterations each",
        "judged": {"on": "test.npz", "count": 2000, "labelled": True},
        "rows": [row("zeroq"), row("noise", remark="takes no steps")],
    }  # fmt: skip


def cells(result: dict[str, Any], name: str) -> dict[str, str]:
    table = comparison_table(result)
    (found,) = [one for one in table.rows if one[0] == name]
    return dict(zip(table.titles, found, strict=True))


def test_every_number_has_its_column(result: dict[str, Any]) -> None:
    found = cells(result, "zeroq")
    assert found == {
        "images": "zeroq", "top-1 %": "89.99", "agreement %": "91.23",
        "BN distance": "3.14 ± 0.03", "BN mse": "0.00123", "similarity": "0.500",
        "variance within class": "12.3", "class agreement %": "87.50",
        "number": "1,500", "image-iterations": "18,000",
        "steps": "12", "seconds": "20.0", "images/s": "75.0", "student s": "4.3",
    }  # fmt: skip


def test_the_float_network_stands_first_with_its_top_1(result: dict[str, Any]) -> None:
    table = comparison_table(result)
    assert table.rows[0][:3] == ["float network", "92.00", "–"]
    result["teacher"]["accuracy"] = None
    assert comparison_table(result).rows[0][0] == "zeroq"


def test_columns_in_which_nothing_was_measured_are_left_out(result: dict[str, Any]) -> None:
    assert "CLIP" not in comparison_table(result).titles
    result["rows"][0]["quality"]["clip"] = {"similarity": 0.25, "similarity_within_class": 0.75}
    table = comparison_table(result)
    assert cells(result, "zeroq")["CLIP"] == "0.250"
    assert cells(result, "noise")["CLIP within class"] == "–"
    assert set(table.meanings) == set(table.titles) - {"images"}


def test_both_halves_hold_every_column_once_and_no_empty_row(result: dict[str, Any]) -> None:
    result["rows"].append(row("bad", fault="why", images=None, quality=None, student=None))
    table = comparison_table(result)
    first, second = table.halves()
    assert [*first.titles, *second.titles[1:]] == table.titles
    assert second.titles[0] == "images"
    assert [one[0] for one in first.rows] == ["float network", "zeroq", "noise"]
    assert [one[0] for one in second.rows] == ["zeroq", "noise"]
    assert len(table.rows) == 4


def test_faults_remarks_and_float_inputs_are_told(result: dict[str, Any]) -> None:
    result["rows"].append(row("bad", fault="it broke", images=None, quality=None, student=None))
    result["plan"]["float_inputs"] = ["conv1", "fc"]
    told = notes(result)
    assert told[:2] == ["bad: it broke", "noise: takes no steps"]
    assert "2 inputs of layers in float: conv1, fc" in told[2]
    result["judged"]["labelled"] = False
    assert "accuracy is not known" in notes(result)[-1]


def test_the_facts_name_student_budget_and_judges(result: dict[str, Any]) -> None:
    told = dict(facts(result))
    assert told["student"] == "w4a4, plan every_layer; calibrate → distill"
    assert told["judged on"] == "2,000 labelled images: test.npz"
    assert told["budget"] == "18,000 image-iterations each"
    result["judged"]["labelled"] = False
    assert dict(facts(result))["judged on"] == "2,000 images: test.npz"
    result["plan"] = None
    assert dict(facts(result))["student"].startswith("none yet")


def test_markdown_holds_the_same_cells(result: dict[str, Any]) -> None:
    result["rows"][0]["name"] = "a|b"
    lines = markdown(result).splitlines()
    table = comparison_table(result)
    (line,) = [one for one in lines if one.startswith("| a\\|b |")]
    assert line.replace("\\|", "!").count("|") == len(table.titles) + 1
    assert "emptyset compare x" in lines
