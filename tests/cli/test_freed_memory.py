"""What a step frees, the next step finds again."""

import ctypes
import json
import subprocess
import sys
from typing import Any

import pytest

from emptyset.cli.freed_memory import keep_freed_memory

HAS_MALLOPT = hasattr(ctypes.CDLL(None), "mallopt") if sys.platform != "win32" else False

# Steps that allocate 100 MB in blocks below the limit, and free them; pages touched anew in each.
STEPS = """
import json, resource, sys
from emptyset.cli.freed_memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
faults = []
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [bytearray(10 << 20) for _ in range(10)]
    del blocks
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(json.dumps(faults))
"""


def faults(how: str) -> list[int]:
    command = [sys.executable, "-c", STEPS, how]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: list[int] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(not HAS_MALLOPT, reason="needs the GNU C library")
def test_pages_are_made_once_and_not_in_every_step() -> None:
    # 100 MB are 25,600 pages of 4 KiB; bytearray clears, and so touches, all of them.
    assert faults("leave")[-1] > 10_000
    assert faults("keep")[-1] < 1_000


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_another_c_library_is_left_alone(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_name: Any) -> Any:
        raise error

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert keep_freed_memory() is False
