"""The page about sources: its commands, recipes and programs run, its settings are settings."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from page_commands import WHOLE, only_to_the_file
from typer.testing import CliRunner, Result

from emptyset import registry
from emptyset.cli.app import app
from emptyset.recipe import Recipe
from emptyset.recipe_text import read_marked
from emptyset.refiners.course import PRESETS
from emptyset.refiners.distill import DistillConfig
from emptyset.settings import checked_config
from emptyset.sources import qimera

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "sources.md").read_text(encoding="utf-8")
# Few and narrow: what is tested is the page, not what it gives.
TINY_SOURCE = ["source.widths=[5, 4]", "source.count=6"]
TINY_DISTILL = [
    f"refine.distill.{setting}"
    for setting in ("steps=8", "batch_size=4", "epoch=2", "held_out=4", "warm_up=0.375")
]
TINY_RUN = ["evaluate.layer_images=2", "evaluate.latency_rounds=0", "evaluate.quality_images=0"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def commands() -> list[list[str]]:
    return [shlex.split(line) for block in blocks("sh") for line in block.splitlines()]


def section(title: str) -> str:
    return re.split(r"\n##+ ", PAGE.split(f"# {title}\n", 1)[1])[0]


def rows(title: str) -> list[list[str]]:
    """Cells of the section's table, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def settings_in(text: str) -> list[dict[str, Any]]:
    """What is written as `key: value`."""
    return [yaml.safe_load(found) for found in re.findall(r"`([a-z_]+: [^`]+)`", text)]


def emptyset(*arguments: str, settings: list[str]) -> Result:
    torch.set_num_threads(1)
    changes = [word for setting in settings for word in ("--set", setting)]
    return CliRunner().invoke(app, [*arguments, *changes])


def tiny(name: str, arguments: list[str]) -> list[str]:
    """Settings that make this command of the page a matter of seconds."""
    if name == "run" or "--recipe" in arguments:
        return [*TINY_RUN, *TINY_SOURCE, *TINY_DISTILL, "evaluate.images=scans.npz"]
    if name == "quantize":
        return [*TINY_RUN, "refine.genie.steps=2", "evaluate.images=scans.npz"]
    return []


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, few_labelled: Path) -> Path:
    """A folder with the page's first recipe, those of the clone, and a few scans."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "source.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
    (folder / "recipes").mkdir()
    shutil.copy(ROOT / "recipes" / "digits_resnet_qimera_everylayer_w4a4.yaml", folder / "recipes")
    shutil.copy(few_labelled, folder / "scans.npz")
    return folder


@WHOLE
def test_every_command_runs(place: Path, monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    monkeypatch.chdir(place)
    lines = commands()
    assert len(lines) == 6
    for position, (program, *arguments) in enumerate(lines):
        assert program == "emptyset"
        more = ["--count", "6"] if "--from" in arguments else []
        more += ["--pairs", "2"] if arguments[1].endswith("generator.safetensors") else []
        name = arguments[0]
        with only_to_the_file(lines, position, whole=whole) as expected:
            result = emptyset(*arguments, *more, settings=tiny(name, arguments))
        assert result.exit_code == expected, f"{shlex.join(arguments)}\n{result.output}"
    assert (place / "runs" / "source" / "generator.safetensors").is_file()


def shorter(program: str) -> str:
    """The same with a small generator and few batches."""
    for whole, short in (
        ("steps=300", "steps=8"), ("batch_size=64", "batch_size=4, held_out=4"),
        ("widths=(32, 16)", "widths=(5, 4)"), ("drawn(64", "drawn(6"),
    ):  # fmt: skip
        assert whole in program
        program = program.replace(whole, short)
    return program


def test_the_program_that_trains_runs_and_the_file_is_proved(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    exec(shorter(blocks("python")[0]), {})
    assert capsys.readouterr().out.startswith("holds")
    assert (place / "generator.safetensors").is_file()


def test_what_the_page_says_of_divergence_is_so(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    wild = [*tiny("run", []), "refine.distill.learning_rate=1.0e+8"]
    again = ["run", "source.yaml", "--out", "runs/diverged"]
    result = emptyset(*again, settings=wild)
    assert result.exit_code == 4, result.output
    assert "runs/diverged/last_good_student.safetensors" in result.stderr
    exec(blocks("python")[1], {})
    assert (place / "last_good.onnx").is_file()
    # The two remedies, as they are written.
    remedies = re.findall(r"`--set ((?:refine|source)\.\S+)`", section("When training diverges"))
    assert len(remedies) == 2
    Recipe.load(place / "source.yaml", remedies)
    lower = [*tiny("run", []), remedies[0]]
    assert emptyset(*again, settings=lower).exit_code == 5
    assert emptyset(*again, "--overwrite", settings=lower).exit_code == 0
    left = {path.name for path in (place / "runs" / "diverged").iterdir()}
    assert left >= {"student.safetensors", "model.onnx"}
    assert "last_good_student.safetensors" not in left


def test_the_recipes_are_read() -> None:
    smallest, short, with_others = [Recipe.parse(*read_marked(b, "page")) for b in blocks("yaml")]
    assert smallest.source is not None
    assert (smallest.source.count, smallest.synthesize) == (1024, None)
    assert short.source is not None
    weights = ("statistics_weight", "similarity_weight", "class_similarity_weight")
    assert tuple(short.source.settings()) == weights
    assert with_others.source is not None
    assert [one.method for one in with_others.refine] == ["calibrate", "genie", "distill"]


def test_the_table_of_presets_has_every_source_and_every_preset_for_one() -> None:
    table = rows("Which preset goes with which source")
    named = {name for row in table for name in re.findall(r"`(\w+)`", row[0])}
    assert named == set(registry.sources.names())
    presets = {re.findall(r"`(\w+)`", row[1])[0] for row in table}
    # `published` is for stored images.
    assert presets == set(PRESETS) - {"published"}
    for sources, preset, _ in table:
        for name in re.findall(r"`(\w+)`", sources):
            on = {key: v for found in settings_in(sources) for key, v in found.items()}
            distill = {key: v for found in settings_in(preset) for key, v in found.items()}
            method = {"method": "distill", "preset": re.findall(r"`(\w+)`", preset)[0]}
            Recipe.parse(
                {
                    "teacher": {"name": "embedded:digits-resnet"},
                    "source": {"method": name, **on},
                    "refine": [method | distill],
                }
            )


def test_k_and_p_are_those_of_the_methods_docstring() -> None:
    text = " ".join(str(qimera.__doc__).split())
    for network, *cells in rows("K and p of Qimera"):
        found = [re.fullmatch(r"K (\d+), p ([\d.]+)", cell) for cell in cells]
        w4, w5 = (f"{match[1]}, {match[2]}" for match in found if match)
        same, apart = f"{network} {w4}[;.]", f"{network} w4 {w4}, w5 {w5}[;.]"
        assert re.search(same if w4 == w5 else apart, text), network


def test_settings_for_imagenet_are_settings() -> None:
    table = rows("ImageNet")
    assert {row[0].strip("`") for row in table} == set(PRESETS) - {"published", "learned"}
    count = 0
    for name, of_student, of_source in table:
        preset = name.strip("`")
        method = {"gdfq": "autorecon", "ait": "autorecon"}.get(preset, preset)
        for setting in settings_in(of_student):
            checked_config(DistillConfig, {"preset": preset} | setting)
            count += 1
        for setting in settings_in(of_source):
            checked_config(registry.sources.get(method).config, setting)
            count += 1
    assert count > 15


def test_settings_of_what_was_released_are_settings() -> None:
    for setting, of, _ in rows("As released"):
        found = {key: value for part in settings_in(setting) for key, value in part.items()}
        assert found
        for name in re.findall(r"`(\w+)`", of):
            if name == "distill":
                preset = re.findall(r"preset `(\w+)`", of) or ["gdfq"]
                config: Any = checked_config(DistillConfig, {"preset": preset[0]} | found)
            elif name in registry.sources.names():
                config = checked_config(registry.sources.get(name).config, found)
            else:
                continue
            # Not what would be there anyway.
            default = type(config)()
            assert all(getattr(config, key) != getattr(default, key) for key in found), setting


def test_the_page_is_linked() -> None:
    for page, link in (("README.md", "docs/sources.md"), ("docs/recipes.md", "sources.md")):
        assert f"({link})" in (ROOT / page).read_text(encoding="utf-8")
