"""The page about mixed precision; its command runs in `tests/cli/test_mixed_precision.py`."""

import re
from pathlib import Path

import pytest

from emptyset.bit_allocation.budget import Budget
from emptyset.recipe import Recipe
from emptyset.recipe_text import read_marked

PAGE = Path(__file__).parents[2] / "docs" / "mixed_precision.md"


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return str(found)


def test_the_program_runs(capsys: pytest.CaptureFixture[str]) -> None:
    shorter = block("python").replace("count=64", "count=6").replace("steps=25", "steps=2")
    exec(shorter, {})
    lines = capsys.readouterr().out.splitlines()
    assert float(lines[0].split()[0]) <= 4.5
    assert len(lines) > 5


def test_the_recipe_is_read() -> None:
    recipe = Recipe.parse(*read_marked(block("yaml"), "page"))
    assert recipe.mixed_precision is not None
    assert recipe.mixed_precision.activations == (4, 6, 8)


def test_every_budget_of_the_table_is_read() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [str(Budget.parse(row)) for row in rows] == rows
    assert len(rows) == 5
