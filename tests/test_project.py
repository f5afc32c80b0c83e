"""What the project files promise: versions, extras, a cheap import, plug-ins, shipped files."""

import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import emptyset
from emptyset import errors, registry

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONSTRAINTS = {
    canonicalize_name(requirement.name): requirement
    for requirement in map(
        Requirement,
        [
            line
            for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
            if line and not line.startswith("#")
        ],
    )
}
REQUIREMENTS = [
    Requirement(text)
    for text in [
        *PROJECT["dependencies"],
        *(line for lines in PROJECT["optional-dependencies"].values() for line in lines),
    ]
    if not text.startswith("emptyset[")
]
# Packages that `import emptyset` must not bring along.
HEAVY = [
    "torchao", "onnx", "onnxruntime", "onnxscript", "timm", "torchvision", "transformers",
    "rich", "typer", "matplotlib", "jinja2", "scipy",
]  # fmt: skip


def run_python(code: str) -> str:
    """In a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    result = subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return result.stdout


def test_import_brings_no_heavy_package_along() -> None:
    code = (
        f"import emptyset, sys, json; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    )
    assert json.loads(run_python(code)) == []


def test_import_takes_little_more_than_importing_torch() -> None:
    code = (
        "import time, torch\n"
        "start = time.perf_counter()\n"
        "import emptyset\n"
        "print(time.perf_counter() - start)"
    )
    # The best of three: another process may be at work.
    assert min(float(run_python(code)) for _ in range(3)) < 0.3


def test_every_public_name_can_be_imported() -> None:
    for name in emptyset.__all__:
        assert hasattr(emptyset, name), name
    assert len(emptyset.__all__) <= 20


def test_the_version_is_told_the_same_everywhere() -> None:
    assert importlib.metadata.version("emptyset") == emptyset.__version__


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_every_dependency_is_pinned_at_a_version_that_fits(requirement: Requirement) -> None:
    pinned = CONSTRAINTS[canonicalize_name(requirement.name)].specifier
    (only,) = pinned
    assert only.operator == "=="
    assert requirement.specifier.contains(only.version, prereleases=True)


def test_the_tests_run_with_the_pinned_versions() -> None:
    for requirement in REQUIREMENTS:
        name = canonicalize_name(requirement.name)
        installed = importlib.metadata.version(name).partition("+")[0]
        assert installed in CONSTRAINTS[name].specifier, name


def test_the_core_stays_small() -> None:
    core = {Requirement(text).name for text in PROJECT["dependencies"]}
    assert core == {
        "numpy", "pillow", "pydantic", "pyyaml", "rich", "safetensors", "torch", "torchao", "typer",
    }  # fmt: skip


def test_all_means_every_extra_that_adds_a_feature() -> None:
    extras = PROJECT["optional-dependencies"]
    (line,) = extras["all"]
    assert Requirement(line).extras == set(extras) - {"all", "test"}


def test_the_licence_is_the_one_the_project_names() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "CC BY 4.0" in (ROOT / "NOTICE").read_text(encoding="utf-8")


def test_the_script_leads_to_a_function() -> None:
    (point,) = importlib.metadata.entry_points(group="console_scripts", name="emptyset")
    assert callable(point.load())


def test_the_check_can_be_executed() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)


def test_the_makefile_installs_with_the_pinned_versions() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    torch = str(CONSTRAINTS["torch"].specifier).removeprefix("==")
    assert f"-c constraints.txt torch=={torch}" in text
    assert text.count("pip install -c constraints.txt") == text.count("pip install")


def test_a_package_of_somebody_else_adds_a_method(tmp_path: Path) -> None:
    (tmp_path / "their_method.py").write_text(
        "from dataclasses import dataclass\n"
        "from emptyset.registry import selectors\n"
        "@dataclass(frozen=True)\n"
        "class TheirConfig:\n"
        "    share: float = 0.5\n"
        "@selectors.register('theirs', TheirConfig, sentence='Theirs.', source='ours')\n"
        "class Theirs:\n"
        "    pass\n"
    )
    info = tmp_path / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{registry.ENTRY_POINT_GROUP}]\ntheirs = their_method\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from emptyset.registry import selectors\n"
        "print(selectors.get('theirs').sentence)"
    )
    assert run_python(code) == "Theirs.\n"


def test_each_error_has_its_exit_code_and_builtin() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.EmptysetError)
    ]
    for kind in kinds:
        assert kind.exit_code in {2, 3, 4, 5}
        if kind is not errors.EmptysetError:
            assert any(
                base.__module__ == "builtins" and base not in (Exception, BaseException, object)
                for base in kind.__mro__
            ), kind
