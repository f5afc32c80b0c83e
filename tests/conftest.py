"""What every test starts with: one thread, no network, torchvision that can be imported."""

import gc
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

# After this file has prepared the process.
pytest_plugins = ["student_fixtures"]

TESTS = Path(__file__).parent
SHIM = TESTS / "sitecustomize_torchvision"

# Before any hub client is imported: it reads this once. Tests never download.
os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)
# Exporting makes garbage in great numbers; looking for it so often took a tenth of the suite.
gc.set_threshold(20_000, 25, 25)

hypothesis.settings.register_profile("emptyset", deadline=None, derandomize=True)
hypothesis.settings.load_profile("emptyset")


def _install_torchvision_shim() -> None:
    """Here and, through PYTHONPATH, in every process that a test starts."""
    spec = importlib.util.spec_from_file_location(
        "torchvision_shim_for_tests", SHIM / "sitecustomize.py"
    )
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    paths = [str(SHIM), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))


_install_torchvision_shim()


@pytest.fixture(autouse=True, scope="session")
def float_files_of_shipped_networks_are_exported_once() -> Iterator[None]:
    """Nearly every run writes one, for its size; it depends on nothing but the network."""
    from emptyset.exporters import onnx as exporter

    export, made = exporter.export_float, {}

    def once(teacher: Any, path: Path) -> int:
        key = (teacher.name, teacher.weights_hash)
        if key in made:
            return path.write_bytes(made[key])
        size: int = export(teacher, path)
        if teacher.name.startswith("embedded:"):
            made[key] = path.read_bytes()
        return size

    exporter.export_float = once
    yield
    exporter.export_float = export


@pytest.fixture(autouse=True, scope="session")
def the_exporter_lists_its_operators_once() -> Iterator[None]:
    """PyTorch builds this table anew in every export, a quarter of the time of a small network."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    build, built = ONNXRegistry.from_torchlib, {}

    def once(**named: Any) -> ONNXRegistry:
        key = tuple(named.items())
        if key not in built:
            built[key] = build(**named)
        return built[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(once))
        yield


@pytest.fixture(autouse=True, scope="session")
def torch_lists_its_composite_operators_once() -> Iterator[None]:
    """Every export asks for them once for each namespace of operators."""
    from torch._export import utils

    listing, seen = utils._materialize_cpp_cia_ops, set()

    def once() -> None:
        namespaces = frozenset(torch.ops._dir)
        if namespaces not in seen:
            listing()
            seen.add(namespaces)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "_materialize_cpp_cia_ops", once)
        yield


@pytest.fixture(autouse=True, scope="session")
def networks_are_captured_and_translated_once() -> Iterator[None]:
    """For students; tests of capturing call `capture` itself."""
    from kept_captures import kept, kept_translation

    from emptyset.exporters import onnx as exporter
    from emptyset.graph import student

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(student, "capture", kept(student.capture))
        patch.setattr(exporter, "_to_proto", kept_translation(exporter._to_proto))
        yield
