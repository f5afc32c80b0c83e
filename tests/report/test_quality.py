"""What is said of images: which features their similarities were measured in."""

from typing import Any

import pytest

from emptyset.report.quality import features_text, quality_rows


def found(**diversity: Any) -> dict[str, Any]:
    told = {"similarity": 0.25, "similarity_within_class": None, "similarity_to_others": 0.5}
    return {"count": 3, "distance": None, "diversity": told | diversity, "clip": None}


@pytest.mark.parametrize(
    ("kind", "text"),
    [("penultimate", "teacher's last features"), ("logits", "teacher's logits")],
)
def test_similarity_names_what_was_compared(kind: str, text: str) -> None:
    rows = {row.name: row for row in quality_rows({"images": found(features=kind), "real": None})}
    assert rows["similarity, all pairs"].remark == f"cosine of the {text}; lower is more diverse"
    assert rows["similarity, all pairs"].values == ["0.250", "–"]
    assert not any("{" in row.remark for row in rows.values())


def test_what_older_versions_measured_does_not_say_in_which_features() -> None:
    assert features_text([found(), None]) == "teacher's features"
    assert features_text([]) == "teacher's features"


def test_variance_is_told_where_it_was_measured() -> None:
    sets = {"images": found(features="logits", variance_within_class=4.4449), "older": found()}
    (row,) = [row for row in quality_rows(sets) if row.name == "variance within a class"]
    assert row.values == ["4.44", "–"]
    assert row.remark == "of the teacher's logits, summed; higher is more diverse"
    assert "variance within a class" not in [one.name for one in quality_rows({"older": found()})]
