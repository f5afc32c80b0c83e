"""Threads that wait spin for a moment, unless the environment says otherwise."""

import subprocess
import sys

import pytest

from emptyset.cli.waiting_threads import wait_briefly

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        # Set first, so that what the function sets is taken back behind the test.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def found() -> dict[str, str]:
    import os

    return {name: os.environ[name] for name in NAMES if name in os.environ}


def test_they_spin_for_a_moment_on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    wait_briefly()
    assert found() == {"GOMP_SPINCOUNT": "30000"}


def test_elsewhere_they_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    wait_briefly()
    assert found() == {"OMP_WAIT_POLICY": "PASSIVE"}


@pytest.mark.parametrize("name", NAMES)
def test_what_the_environment_says_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "7")
    wait_briefly()
    assert found() == {name: "7"}


def test_the_program_says_so_before_torch_is_there() -> None:
    code = (
        "import sys, emptyset.cli.app as app, emptyset.cli.waiting_threads as w\n"
        "app.wait_briefly = lambda: print('torch' in sys.modules)\n"
        "sys.argv = ['emptyset', '--version']\n"
        "app.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[0] == "False"
