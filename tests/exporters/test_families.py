"""Every kind of network that people quantize, from capture to certificate."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "file_families.py"
NAME = "file_families_under_test"
KINDS = (
    "resnet", "mobilenetv2", "mobilenetv3", "efficientnet", "densenet", "preactivation_resnet",
    "regnet", "shufflenet", "convnext", "vit", "swin", "concat_and_resize",
)  # fmt: skip
# Nothing of these is left in float; the others' nonlinear operators have no integer kernel.
ALL_INTEGER = {
    "resnet", "mobilenetv2", "densenet", "preactivation_resnet", "shufflenet",
}  # fmt: skip
PRODUCTS = {"Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}


@pytest.fixture(scope="module")
def families() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location(NAME, SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[NAME]


def test_every_kind_is_there(families: ModuleType) -> None:
    assert tuple(families.FAMILIES) == KINDS


# One width of each kind in the quick run; `make test-slow` has the other, and both of those that
# the shipped networks and other kinds hold all operators of.
SLOW = {
    (kind, "w4a4" if kind in ("swin", "shufflenet", "efficientnet") else "w8a8") for kind in KINDS
} | {(kind, "w4a4") for kind in ("resnet", "mobilenetv2", "regnet")}
CASES = [
    pytest.param(kind, bits, marks=[pytest.mark.slow] if (kind, bits) in SLOW else [])
    for kind in KINDS
    for bits in ("w8a8", "w4a4")
]


@pytest.mark.parametrize(("kind", "bits"), CASES)
def test_the_certificate_of_this_kind_holds(
    kind: str, bits: str, families: ModuleType, tmp_path: Path
) -> None:
    row = families.measure(families.teacher_of(kind), bits, tmp_path)
    assert row["certificate"] == "holds"
    assert row["float_gap"] < 1e-5
    assert not PRODUCTS & row["in_float"].keys()
    if kind in ALL_INTEGER:
        assert row["in_float"] == {}
        assert row["integer_share"] == 1.0
        assert row["other_pairs"] == 0
    assert families.table([row]).count(f"| {kind} | {bits} | holds |") == 1
