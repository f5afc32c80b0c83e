"""Room for activations: what is left of memory, and files that leave nothing behind."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from emptyset.errors import RunFolderError
from emptyset.graph import room
from emptyset.graph.room import MappedFile, bytes_held, file_folder, gigabytes, room_left
from emptyset.images.image_set import ImageSet
from emptyset.images.no_images import NO_IMAGES

CPU, GB = torch.device("cpu"), 2**30


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files go in this test."""
    monkeypatch.setattr(room, "file_folder", lambda: tmp_path)
    return tmp_path


def test_tensors_lie_in_the_file_side_by_side(folder: Path) -> None:
    file = MappedFile(64 + 4 * 6)
    whole, part = torch.arange(7), torch.rand(2, 3)
    file.tensor((7,), torch.int64).copy_(whole)
    file.tensor((2, 3), torch.float32, start=64).copy_(part)
    assert torch.equal(file.tensor((7,), torch.int64), whole)
    assert torch.equal(file.tensor((3, 2), torch.float32, start=64), part.view(3, 2))
    # Claimed, but without a name.
    assert not list(folder.iterdir())


def test_pages_that_were_given_back_are_still_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_GIVE_BACK_EVERY", 8)
    file, values = MappedFile(4 * 5000), torch.rand(5000)
    file.tensor((5000,), torch.float32).copy_(values)
    file.touched(20_000)
    assert torch.equal(file.tensor((5000,), torch.float32), values)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_kill_leaves_no_file(tmp_path: Path) -> None:
    work = (
        "import os, signal; from emptyset.graph.room import MappedFile, file_folder;"
        f"assert str(file_folder()) == {str(tmp_path)!r};"
        "file = MappedFile(1 << 16); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", work], env=os.environ | {"TMPDIR": str(tmp_path)}, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert not list(tmp_path.iterdir())


def test_files_go_where_the_user_says_else_to_a_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "system"))
    monkeypatch.setattr(room, "_ON_A_DISK", tmp_path)
    assert file_folder() == tmp_path
    monkeypatch.setattr(room, "_ON_A_DISK", tmp_path / "missing")
    assert file_folder() == tmp_path / "system"
    monkeypatch.setattr(room, "_ON_A_DISK", tmp_path)
    monkeypatch.setenv("TMPDIR", "given")
    assert file_folder() == tmp_path / "system"


def test_a_full_disk_says_what_to_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RunFolderError, match=r"No space left on device.*set TMPDIR") as raised:
        MappedFile(3 << 29)
    assert str(raised.value).startswith(f"{folder}: no room for 1.50 GB")


def test_what_is_left_is_that_of_the_process() -> None:
    assert room_left(CPU, 3.0, images=5000, working=700) == 2 * GB - 5700
    assert room_left(CPU, 1.0, images=0, working=0) == 0
    assert room_left(CPU, 0.5, images=0, working=0) == 0


def test_on_an_accelerator_it_is_what_is_free_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def free(device: torch.device) -> int:
        asked.append(device)
        return 9000

    monkeypatch.setattr(room, "free_on_accelerator", free)
    device = torch.device("cuda:1")
    assert room_left(device, 1e-3, images=5000, working=700) == 8300
    assert room_left(device, 1e-3, images=0, working=9001) == 0
    assert asked == [device] * 2


def test_free_memory_counts_what_torch_holds_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 120)
    assert room.free_on_accelerator(torch.device("cuda")) == 1180
    assert room.free_on_accelerator(CPU) is None


def test_only_images_in_memory_count() -> None:
    assert bytes_held(ImageSet(torch.zeros(5, 3, 2, 4))) == 4 * 5 * 3 * 2 * 4
    assert bytes_held(NO_IMAGES) == 0


def test_sizes_are_told_in_gigabytes() -> None:
    assert gigabytes(3 << 29) == "1.50 GB"
