"""The run folder: what is done is not done again, and nothing half-written stays."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from emptyset.errors import RunFolderError
from emptyset.kept_states import KeepingMonitor
from emptyset.monitor import SILENT, Monitor
from emptyset.recipe import Recipe
from emptyset.run_folder import PARTIAL, STAGES, RunFolder, Workplace


def recipe_with(**values: Any) -> Recipe:
    return Recipe.parse({"teacher": {"name": "embedded:digits-resnet"}, **values})


class Work:
    """A stage that writes one file and counts how often it is run."""

    def __init__(self, text: str = "made") -> None:
        self.text = text
        self.runs = 0

    def __call__(self, at: Workplace) -> dict[str, Any]:
        self.runs += 1
        (at.aside / "sub").mkdir()
        (at.aside / "sub" / "a.txt").write_text(self.text, encoding="utf-8")
        return {"length": len(self.text)}


def run_once(path: Path, work: Any, inputs: Any = 1, recipe: Recipe | None = None) -> bool:
    recipe = recipe or recipe_with()
    with RunFolder.claim(path, recipe) as folder:
        folder.begin(recipe)
        record, now = folder.run("stage", inputs, work, SILENT)
    assert record.result == {"length": 4}
    return now


def test_a_finished_stage_is_not_run_again(tmp_path: Path) -> None:
    work = Work()
    assert run_once(tmp_path / "r", work)
    assert not run_once(tmp_path / "r", work)
    assert work.runs == 1
    assert (tmp_path / "r" / "sub" / "a.txt").read_text() == "made"


@pytest.mark.parametrize("damage", ["changed", "removed", "other inputs", "unreadable record"])
def test_a_stage_is_run_again_when_something_changed(tmp_path: Path, damage: str) -> None:
    work, path = Work(), tmp_path / "r"
    run_once(path, work)
    file = path / "sub" / "a.txt"
    if damage == "changed":
        file.write_text("mad", encoding="utf-8")
    elif damage == "removed":
        file.unlink()
    elif damage == "unreadable record":
        (path / STAGES).write_text('{"format": 1, "stages": {"stage"', encoding="utf-8")
    run_once(path, work, inputs=2 if damage == "other inputs" else 1)
    assert work.runs == 2
    assert file.read_text() == "made"


def test_files_of_the_last_time_that_are_not_written_again_are_removed(tmp_path: Path) -> None:
    run_once(tmp_path, Work())

    def other(at: Workplace) -> dict[str, Any]:
        (at.aside / "b.txt").write_text("b", encoding="utf-8")
        return {"length": 4}

    run_once(tmp_path, other, inputs=2)
    assert not (tmp_path / "sub" / "a.txt").exists()
    assert (tmp_path / "b.txt").exists()


def test_a_stage_that_fails_leaves_no_file(tmp_path: Path) -> None:
    def broken(at: Workplace) -> dict[str, Any]:
        (at.aside / "half.txt").write_text("ha", encoding="utf-8")
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        run_once(tmp_path / "r", broken)
    assert not (tmp_path / "r").exists()
    run_once(tmp_path / "r", Work())
    with pytest.raises(ValueError, match="stop"):
        run_once(tmp_path / "r", broken, inputs=2)
    assert not list((tmp_path / "r").rglob("half.txt"))


def test_a_folder_of_another_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    run_once(tmp_path, Work())
    other = recipe_with(plan={"bits": "w4a4"}, seed=7)
    with pytest.raises(RunFolderError) as caught, RunFolder.claim(tmp_path, other):
        pass
    said = str(caught.value)
    assert "plan.bits: w8a8 there, w4a4 wanted" in said
    assert "seed: 0 there, 7 wanted" in said
    assert "--out" in said
    assert "--overwrite" in said
    with RunFolder.claim(tmp_path, other, overwrite=True) as folder:
        folder.begin(other)
        assert folder.finished("stage", 1)
    assert RunFolder.open(tmp_path)[1] == other


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    with (
        pytest.raises(RunFolderError, match=r"thesis\.txt"),
        RunFolder.claim(tmp_path, recipe_with()),
    ):
        pass
    with (
        pytest.raises(RunFolderError, match="is a file"),
        RunFolder.claim(tmp_path / "thesis.txt", recipe_with()),
    ):
        pass


def test_a_claim_that_never_begins_leaves_no_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="no teacher"),
        RunFolder.claim(tmp_path / "r", recipe_with()),
    ):
        raise ValueError("no teacher")
    assert not (tmp_path / "r").exists()


def test_two_processes_cannot_work_in_one_folder(tmp_path: Path) -> None:
    with (
        RunFolder.claim(tmp_path / "r", recipe_with()),
        pytest.raises(RunFolderError, match="another emptyset process"),
        RunFolder.claim(tmp_path / "r", recipe_with()),
    ):
        pass


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, "the disk is full. Nothing half-written was left"),
        (errno.EROFS, "cannot be written"),
        (errno.EACCES, "cannot be written"),
        (errno.EISDIR, "there is a folder of this name"),
    ],
)
def test_what_the_disk_refuses_is_explained(tmp_path: Path, number: int, expected: str) -> None:
    def full(at: Workplace) -> dict[str, Any]:
        (at.aside / "half.txt").write_text("ha", encoding="utf-8")
        raise OSError(number, os.strerror(number))

    with pytest.raises(RunFolderError, match=expected):
        run_once(tmp_path, full)
    assert not list(tmp_path.rglob("half.txt"))


def test_a_full_disk_while_a_tensor_file_is_written_is_explained(tmp_path: Path) -> None:
    def full(at: Workplace) -> dict[str, Any]:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with pytest.raises(RunFolderError, match="the disk is full"):
        run_once(tmp_path, full)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts need root")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(mount)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine does not let tests mount a disk")
    try:

        def large(at: Workplace) -> dict[str, Any]:
            at.monitor.keep("state", lambda: {"x": torch.zeros(1 << 20)}, final=True)
            return {"length": 4}

        with pytest.raises(RunFolderError, match="the disk is full"):
            run_once(mount / "r", large)
        assert not list(mount.rglob("*.part"))
        assert not list(mount.rglob("*.safetensors"))
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_somebody_elses_unreadable_file_is_not_blamed_on_the_folder(tmp_path: Path) -> None:
    def unreadable(at: Workplace) -> dict[str, Any]:
        raise PermissionError(errno.EACCES, "Permission denied", "/elsewhere/photo.png")

    with pytest.raises(PermissionError, match=r"photo\.png"):
        run_once(tmp_path, unreadable)


class TestKeptStates:
    def monitor(self, folder: Path, every: float = 0.0) -> KeepingMonitor:
        return KeepingMonitor(SILENT, folder, lambda _: None, every)

    def test_come_back_as_they_were(self, tmp_path: Path) -> None:
        shared = torch.arange(6.0).reshape(2, 3)
        # Views of one memory and a transposed one: safetensors alone would refuse these.
        state = {"a": shared, "b": shared[0], "c": shared.T, "n": torch.tensor(3)}
        self.monitor(tmp_path).keep("batch 1/x", lambda: state, final=True)
        found = self.monitor(tmp_path).restore("batch 1/x")
        assert found is not None
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], state[key]) for key in state)
        assert self.monitor(tmp_path).restore("batch 1/y") is None

    def test_of_keys_that_read_alike_are_kept_apart(self, tmp_path: Path) -> None:
        monitor, keys = self.monitor(tmp_path), ("batch 1/x", "batch_1_x", "batch 1 x")
        for number, key in enumerate(keys):
            monitor.keep(key, lambda n=number: {"n": torch.tensor(n)}, final=True)
        assert [int(monitor.restore(key)["n"]) for key in keys] == [0, 1, 2]

    def test_are_written_when_it_is_time_or_when_final(self, tmp_path: Path) -> None:
        monitor = self.monitor(tmp_path, every=1000.0)
        asked = []

        def state() -> dict[str, torch.Tensor]:
            asked.append(1)
            return {"x": torch.ones(2)}

        monitor.keep("k", state)
        assert (asked, monitor.restore("k")) == ([], None)
        monitor.keep("k", state, final=True)
        assert asked == [1]
        assert monitor.restore("k") is not None

    def test_that_were_cut_off_count_as_absent(self, tmp_path: Path) -> None:
        monitor = self.monitor(tmp_path)
        monitor.keep("k", lambda: {"x": torch.ones(200)})
        (file,) = tmp_path.glob("*.safetensors")
        file.write_bytes(file.read_bytes()[:-40])
        assert monitor.restore("k") is None

    def test_belong_to_one_set_of_inputs_and_go_when_the_stage_is_done(
        self, tmp_path: Path
    ) -> None:
        seen: list[Any] = []

        def killed(at: Workplace) -> dict[str, Any]:
            seen.append(at.monitor.restore("k"))
            at.monitor.keep("k", lambda: {"x": torch.ones(3)}, final=True)
            raise KeyboardInterrupt

        def whole(at: Workplace) -> dict[str, Any]:
            seen.append(at.monitor.restore("k"))
            return {"length": 4}

        for inputs in (1, 2):
            with pytest.raises(KeyboardInterrupt):
                run_once(tmp_path, killed, inputs=inputs)
        assert seen == [None, None]
        run_once(tmp_path, whole, inputs=2)
        assert seen[2] is not None
        assert not list((tmp_path / PARTIAL).glob("stage*"))


def test_the_time_of_a_stage_counts_every_process_but_not_what_a_kill_undid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("emptyset.kept_states.time.monotonic", lambda: now[0])

    def killed(at: Workplace) -> dict[str, Any]:
        now[0] += 7.0
        at.monitor.keep("k", lambda: {"x": torch.ones(3)}, final=True)
        now[0] += 50.0
        raise KeyboardInterrupt

    def whole(at: Workplace) -> dict[str, Any]:
        now[0] += 4.0
        at.monitor.keep("k", lambda: {"x": torch.ones(3)}, final=True)
        now[0] += 2.0
        return {"length": 4}

    with pytest.raises(KeyboardInterrupt):
        run_once(tmp_path, killed)
    now[0] += 900.0
    run_once(tmp_path, whole)
    told = json.loads((tmp_path / STAGES).read_text())
    assert told["stages"]["stage"]["seconds"] == 7.0 + 4.0 + 2.0


def test_stages_json_tells_what_was_done(tmp_path: Path) -> None:
    run_once(tmp_path, Work())
    told = json.loads((tmp_path / STAGES).read_text())
    assert told["stages"]["stage"]["result"] == {"length": 4}
    assert list(told["stages"]["stage"]["files"]) == ["sub/a.txt"]


def test_a_monitor_is_a_monitor(tmp_path: Path) -> None:
    monitor: Monitor = KeepingMonitor(SILENT, tmp_path, lambda _: None)
    monitor.advance("x", 1, 2)
    monitor.note("hello")


def test_what_was_in_a_folder_before_stays_when_a_run_fails_early(tmp_path: Path) -> None:
    recipe, path = recipe_with(), tmp_path / "mine"
    path.mkdir()
    mine = recipe.to_yaml() + "# by hand\n"
    (path / "recipe.yaml").write_text(mine, encoding="utf-8")
    with pytest.raises(ValueError, match="no teacher"), RunFolder.claim(path, recipe):
        raise ValueError("no teacher")
    assert [p.name for p in path.iterdir()] == ["recipe.yaml"]
    assert (path / "recipe.yaml").read_text(encoding="utf-8") == mine


def test_records_of_another_format_are_not_trusted(tmp_path: Path) -> None:
    work = Work()
    run_once(tmp_path, work)
    told = json.loads((tmp_path / STAGES).read_text())
    (tmp_path / STAGES).write_text(json.dumps({**told, "format": told["format"] + 1}))
    assert run_once(tmp_path, work)
    assert work.runs == 2


def test_what_a_kill_left_half_written_does_not_become_a_file_of_the_run(tmp_path: Path) -> None:
    left = tmp_path / PARTIAL / "stage.files"
    left.mkdir(parents=True)
    (left / "half.txt").write_text("ha", encoding="utf-8")
    run_once(tmp_path, Work())
    assert not list(tmp_path.rglob("half.txt"))
    assert (tmp_path / "sub" / "a.txt").read_text() == "made"


@pytest.mark.skipif(sys.platform == "win32", reason="no such permissions")
def test_whoever_may_read_the_recipe_may_read_every_file(tmp_path: Path) -> None:
    def private(at: Workplace) -> dict[str, Any]:
        made = Work()(at)
        (at.aside / "sub" / "a.txt").chmod(0o600)
        return made

    recipe = recipe_with()
    with RunFolder.claim(tmp_path, recipe) as folder:
        folder.begin(recipe)
        (tmp_path / "recipe.yaml").chmod(0o644)
        folder.run("stage", 1, private, SILENT)
    assert (tmp_path / "sub" / "a.txt").stat().st_mode & 0o777 == 0o644


def test_a_discarded_stage_goes_with_its_files_but_for_those_of_others(tmp_path: Path) -> None:
    def images(at: Workplace) -> dict[str, Any]:
        (at.aside / "sheet.txt").write_text("sheet", encoding="utf-8")
        return Work("pixel")(at)

    recipe = recipe_with()
    with RunFolder.claim(tmp_path, recipe) as folder:
        folder.begin(recipe)
        folder.run("images", 1, images, SILENT)
        folder.run("again", 2, Work("other"), SILENT)
        folder.discard("images")
    assert not (tmp_path / "sheet.txt").exists()
    assert (tmp_path / "sub" / "a.txt").read_text() == "other"
    read = RunFolder.open(tmp_path)[0]
    assert read.record("images") is None
    assert read.finished("again", 2) is not None


def test_a_run_that_is_begun_anew_is_whole_no_longer(tmp_path: Path) -> None:
    recipe = recipe_with()
    with RunFolder.claim(tmp_path, recipe) as folder:
        folder.begin(recipe)
        folder.run("stage", 1, Work(), SILENT)
        folder.mark_whole("run", 3)
    assert RunFolder.open(tmp_path)[0].finished("run", 3) is not None
    (tmp_path / "sub" / "a.txt").write_text("mad", encoding="utf-8")
    assert RunFolder.open(tmp_path)[0].finished("run", 3) is None
    (tmp_path / "sub" / "a.txt").write_text("made", encoding="utf-8")
    with RunFolder.claim(tmp_path, recipe) as folder:
        folder.begin(recipe)
    read = RunFolder.open(tmp_path)[0]
    assert read.record("run") is None
    assert read.finished("stage", 1) is not None
