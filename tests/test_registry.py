"""What is said where a name is no method, or one of another kind."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from emptyset import registry
from emptyset.cli.app import app
from emptyset.errors import UnknownNameError
from emptyset.recipe import Recipe

TEACHER: dict[str, Any] = {"name": "embedded:digits-resnet"}


def said(kind: registry.Registry, name: str) -> str:
    with pytest.raises(UnknownNameError) as error:
        kind.get(name)
    return str(error.value)


@pytest.mark.parametrize("name", registry.sources.names())
def test_a_source_that_is_taken_for_a_synthesizer_is_told_how_to_use_it(name: str) -> None:
    found = said(registry.synthesizers, name)
    assert f"No synthesizer is called '{name}'. '{name}' is a source" in found
    (recipe,) = re.findall("`(source: .*?)`", found)
    # What it says to write is a recipe.
    text = f'teacher: {{name: "embedded:digits-resnet"}}\n{recipe}\n'
    parsed = Recipe.parse(yaml.safe_load(text))
    assert parsed.source is not None
    assert parsed.source.method == name
    assert parsed.synthesize is None


def test_a_synthesizer_that_is_taken_for_a_source_is_told_where_it_belongs() -> None:
    found = said(registry.sources, "zeroq")
    assert "'zeroq' is a synthesizer" in found
    assert "`synthesize: {method: zeroq}`" in found
    assert "--images zeroq" in found


def test_a_name_that_nobody_knows_gets_the_nearest() -> None:
    assert "Did you mean 'zeroq'?" in said(registry.synthesizers, "zerok")
    assert "Did you mean 'qimera'?" in said(registry.sources, "qimora")
    assert "is a source" not in said(registry.synthesizers, "zerok")


@pytest.mark.parametrize("command", [["quantize", "--images"], ["synthesize", "--method"]])
def test_the_command_line_says_so(command: list[str], tmp_path: Path) -> None:
    name, option = command
    arguments = [name, TEACHER["name"], option, "qimera", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "'qimera' is a source" in result.stderr
    assert "source: {method: qimera}" in result.stderr
    assert "emptyset run RECIPE" in result.stderr
    assert not (tmp_path / "out").exists()
