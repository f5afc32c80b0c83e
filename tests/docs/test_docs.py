"""Every command and every program in README and docs runs; generated pages are current."""

import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from page_commands import WHOLE, only_to_the_file
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from emptyset import registry
from emptyset.cli.app import app
from emptyset.recipe_by_bits import practical_recipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NETWORK = """
from torch import nn


def build():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 10),
    )
"""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    lines = [line for block in blocks(page, "sh") for line in block.splitlines() if line.strip()]
    return [shlex.split(line, comments=True) for line in lines]


def few_steps_of_refiners(arguments: list[str]) -> list[str]:
    """Options for the recipe that `quantize` chooses by itself."""
    bits = arguments[arguments.index("--bits") + 1] if "--bits" in arguments else "w8a8"
    learning = [section for section in practical_recipe(bits).refine if "steps" in section]
    changes = [f"refine.{section['method']}.steps=2" for section in learning]
    return [word for change in changes for word in ("--set", change)]


def shortened(arguments: list[str], cwd: Path) -> list[str]:
    """The same command with few images and steps, and local weights instead of a hub's."""
    name, *rest = arguments
    if name in ("quantize", "run"):
        rest += ["--set", "evaluate.layer_images=2", "--set", "evaluate.latency_rounds=1"]
        if not any(word.startswith(("timm:", "file:")) for word in rest):
            rest += ["--set", "evaluate.images=labelled.npz"]
        if "--images" not in rest and not any(word.endswith(".yaml") for word in rest):
            rest += ["--set", "synthesize.count=4", "--set", "synthesize.steps=9"]
            if name == "quantize" and "--recipe" not in rest:
                rest += few_steps_of_refiners(rest)
        elif name == "run":
            rest = [word for word in rest if "evaluate." not in word and word != "--set"]
    if name == "synthesize":
        rest += ["--count", "8", "--set", "steps=2"]
    if name == "compare" and not rest[0].endswith(".yaml"):
        rest += ["--count", "8", "--device", "cpu"]
        rest = [
            "0.3" if before == "--seconds" else word
            for before, word in zip(["", *rest], rest, strict=False)
        ]
        if "--seconds" not in rest:
            rest += ["--image-iterations", "40"]
        if "--labelled" not in rest:
            rest += ["--labelled", "labelled.npz"]
        if any("distill" in word for word in rest):
            rest += ["--set", "refine.distill.steps=2"]
    if any(word.startswith("timm:") for word in rest):
        rest += ["--weights", str(cwd / "hub.safetensors")]
    return [name, *rest]


@pytest.fixture
def surroundings(tmp_path: Path, few_labelled: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the pages speak of: photos, labelled images, a package with a network, recipes."""
    (tmp_path / "photos").mkdir()
    drawn = np.random.default_rng(0)
    for index in range(10):
        (tmp_path / "photos" / str(index)).mkdir()
        for copy in range(2):
            pixels = drawn.integers(0, 256, (20, 18), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / str(index) / f"{copy}.png")
    shutil.copy(few_labelled, tmp_path / "labelled.npz")
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("")
    (tmp_path / "my_package" / "nets.py").write_text(NETWORK)
    scope: dict[str, Any] = {}
    exec(NETWORK, scope)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(scope["build"]().state_dict(), tmp_path / "weights.safetensors")
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "my_package"]:
        del sys.modules[name]


def run_all(page: Path, cwd: Path, *, whole: bool, hub: bool | None = None) -> int:
    """Run the page's commands in order; ``hub`` chooses those on a hub's network, or the others."""
    torch.set_num_threads(1)
    done = 0
    lines = commands(page)
    for position, (program, *arguments) in enumerate(lines):
        if hub is not None and hub != any(
            word.startswith(("timm:", "runs/r18")) for word in arguments
        ):
            continue
        if program != "emptyset":
            assert program == "make", f"{page.name}: no test runs '{program}'"
            assert f"\n{arguments[0]}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
            continue
        with only_to_the_file(lines, position, whole=whole) as expected:
            result = CliRunner().invoke(app, shortened(arguments, cwd))
        assert result.exit_code == expected, f"{page.name}: {arguments}\n{result.output}"
        done += 1
    return done


@WHOLE
def test_every_command_of_first_run_runs(surroundings: Path, whole: bool) -> None:
    assert run_all(ROOT / "docs" / "first_run.md", surroundings, whole=whole) >= 10


def test_every_command_of_the_page_on_comparing_runs(surroundings: Path) -> None:
    assert run_all(ROOT / "docs" / "compare.md", surroundings, whole=True) == 6
    (program,) = blocks(ROOT / "docs" / "compare.md", "python")
    exec(program.replace("count=64", "count=4, image_iterations=40"), {})
    assert (surroundings / "runs" / "python" / "compare.html").is_file()


@WHOLE
def test_every_command_of_the_page_on_recipes_runs(surroundings: Path, whole: bool) -> None:
    assert run_all(ROOT / "docs" / "recipes.md", surroundings, whole=whole) == 4


@WHOLE
def test_every_command_of_the_readme_without_a_hub_runs(surroundings: Path, whole: bool) -> None:
    readme = ROOT / "README.md"
    assert run_all(readme, surroundings, whole=whole, hub=False) == 2


@pytest.mark.slow
def test_every_command_of_the_readme_on_a_network_of_a_hub_runs(surroundings: Path) -> None:
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("resnet18.a1_in1k", pretrained=False)
    save_file(network.state_dict(), surroundings / "hub.safetensors")
    readme = ROOT / "README.md"
    assert run_all(readme, surroundings, whole=True, hub=True) == 4


# Here, or by a test of their own.
RUN_ELSEWHERE = {
    "README.md", "first_run.md", "mixed_precision.md", "compare.md", "recipes.md", "sources.md",
}  # fmt: skip


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in RUN_ELSEWHERE])
def test_the_other_pages_hold_no_commands_that_nothing_runs(page: Path) -> None:
    assert commands(page) == []


def test_the_program_in_the_readme_runs(surroundings: Path) -> None:
    (program,) = blocks(ROOT / "README.md", "python")
    shorter = re.sub(r"count=\d+", "count=6", re.sub(r"steps=\d+", "steps=2", program))
    assert shorter.count("count=6") == 2
    exec(shorter, {})
    assert (surroundings / "model.onnx").is_file()


def test_the_method_in_add_a_method_works(monkeypatch: pytest.MonkeyPatch) -> None:
    import emptyset

    registry.synthesizers.names()  # discovered first, or the copy below would swallow them
    monkeypatch.setattr(registry.synthesizers, "_entries", dict(registry.synthesizers._entries))
    program = blocks(ROOT / "docs" / "add_a_method.md", "python")[0]
    # Dataclasses look their module up by name.
    module = type(sys)("grey_of_the_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(program, module.__dict__)
    teacher = emptyset.load("embedded:digits-resnet")
    images = emptyset.synthesize(teacher, "grey", count=3, level=0.25)
    assert images.images.unique().tolist() == [0.25]
    assert len(images) == 3


def test_the_page_of_methods_is_current() -> None:
    written = CliRunner().invoke(app, ["methods", "--markdown"]).stdout
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert page == written, "run: emptyset methods --markdown > docs/methods.md"


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_example_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("example", ROOT / "examples/quantize_digits.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert len(module.WIDTHS) == 3
    monkeypatch.setattr(module, "WIDTHS", widths := module.WIDTHS[-1:])
    module.main(count=6, steps=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == list(widths)
    assert all("certificate holds" in line for line in lines)
