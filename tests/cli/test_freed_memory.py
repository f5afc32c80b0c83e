"""What a step frees, the next step finds again."""

import ctypes
import json
import subprocess
import sys
from typing import Any

import pytest

from emptyset.cli.freed_memory import keep_freed_memory

HAS_MALLOPT = hasattr(ctypes.CDLL(None), "mallopt") if sys.platform != "win32" else False

# Steps that allocate 100 MB in blocks and free them; pages touched anew in each.
STEPS = """
import json, resource, sys
from emptyset.cli.freed_memory import keep_freed_memory

how, size = sys.argv[1], int(sys.argv[2])
if how != "leave":
    assert keep_freed_memory(tight=how == "tight")
faults = []
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [bytearray(size << 20) for _ in range(100 // size)]
    del blocks
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(json.dumps(faults))
"""


def faults(how: str, megabytes: int) -> list[int]:
    command = [sys.executable, "-c", STEPS, how, str(megabytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: list[int] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(not HAS_MALLOPT, reason="needs the GNU C library")
def test_pages_are_made_once_and_not_in_every_step() -> None:
    # 100 MB are 25,600 pages of 4 KiB; bytearray clears, and so touches, all of them.
    assert faults("leave", 10)[-1] > 10_000
    assert faults("keep", 10)[-1] < 1_000
    assert faults("keep", 50)[-1] < 1_000


@pytest.mark.skipif(not HAS_MALLOPT, reason="needs the GNU C library")
def test_where_memory_is_limited_large_blocks_go_back() -> None:
    assert faults("tight", 10)[-1] < 1_000
    assert faults("tight", 50)[-1] > 10_000


def test_a_run_with_a_limit_on_memory_is_tight(
    tmp_path: Any, command: Any, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []

    def tell(*, tight: bool = False) -> bool:
        told.append(tight)
        return True

    monkeypatch.setattr("emptyset.cli.freed_memory.keep_freed_memory", tell)
    arguments = ["quantize", "embedded:digits-resnet", *tiny, "--out", tmp_path / "r"]
    assert command(*arguments, "--memory", "4").exit_code == 0
    assert told == [True]


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_another_c_library_is_left_alone(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_name: Any) -> Any:
        raise error

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert keep_freed_memory() is False
