"""What a run writes, and which parts of it are already done.

Every stage writes aside, into ``.partial/``; when it is finished its files are renamed into place
and ``stages.json`` records the hash of what went in, the digest of every file and the stage's
result. A stage whose inputs hash to the same value and whose files are unchanged is not run again.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from emptyset.disk import disk_errors, file_digest, synced
from emptyset.errors import RunFolderError
from emptyset.kept_states import KEEP_EVERY, KeepingMonitor
from emptyset.monitor import Monitor
from emptyset.recipe import Recipe, hash_of

RECIPE = "recipe.yaml"
IMAGES = "images"
CONTACT_SHEET = f"{IMAGES}/contact_sheet.safetensors"
MIXED_PRECISION = "mixed_precision.json"
STUDENT = "student.safetensors"
GENERATOR = "generator.safetensors"
LAST_GOOD = "last_good_student.safetensors"
MODEL = "model.onnx"
REJECTED = "model.rejected.onnx"
CERTIFICATE = "certificate.json"
METRICS = "metrics.json"
REPORT = "report.html"
LOG = "log.txt"
STAGES = "stages.json"
PARTIAL = ".partial"
LOCK = ".lock"

FORMAT = 1


@dataclass(frozen=True)
class StageRecord:
    """What is known about a finished stage.

    Attributes:
        inputs: Hash of everything that went in.
        files: SHA-256 per file, by its path within the folder.
        result: JSON data that later stages and the report read.
        seconds: How long it took, over all processes that worked on it.
    """

    inputs: str
    files: dict[str, str]
    result: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Workplace:
    """Where a stage works.

    Attributes:
        aside: Folder for its files, named as they shall be named in the run folder.
        monitor: Hears of progress and keeps states.
    """

    aside: Path
    monitor: Monitor


class RunFolder:
    """One folder, one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stages: dict[str, StageRecord] = {}
        self._lock: IO[str] | None = None
        # What was there before this process; it may be somebody's own.
        self._found = {name for name in (".", RECIPE, LOG) if (path / name).exists()}

    # Opening ---------------------------------------------------------------------------------

    @staticmethod
    def open(path: Path) -> tuple["RunFolder", Recipe]:
        """An existing run, for reading.

        Raises:
            RunFolderError: If the folder holds no run.
        """
        if not (path / RECIPE).is_file():
            raise RunFolderError(
                f"{path}: not a run folder: it has no {RECIPE}. Give the folder that "
                "`emptyset quantize --out` or `emptyset run --out` wrote."
            )
        folder = RunFolder(path)
        folder._stages = folder._read_stages()
        return folder, Recipe.load(path / RECIPE)

    @staticmethod
    @contextmanager
    def claim(path: Path, recipe: Recipe, *, overwrite: bool = False) -> Iterator["RunFolder"]:
        """The folder for this recipe, made or continued; no other process may work in it.

        Args:
            path: The folder.
            recipe: What will be run.
            overwrite: Take a folder of another recipe; its stages with equal inputs are kept.

        Raises:
            RunFolderError: If it belongs to another run, to another process, holds other files,
                or cannot be written.
        """
        folder = RunFolder(path)
        with disk_errors(path):
            _refuse_strangers(path, recipe, overwrite=overwrite)
            path.mkdir(parents=True, exist_ok=True)
            folder._take_lock()
        try:
            folder._stages = folder._read_stages()
            yield folder
        finally:
            folder._release_lock()
            folder._leave_nothing_empty()

    def begin(self, recipe: Recipe) -> None:
        """Write the recipe: from here on the folder belongs to it."""
        with disk_errors(self.path):
            if self._stages.pop("run", None) is not None:
                self._write_stages()  # a run of another recipe is whole no longer
            self._write(RECIPE, header_of(recipe) + recipe.to_yaml())

    def _leave_nothing_empty(self) -> None:
        """A run that failed before it made anything leaves no folder behind."""
        if has_progress(self.path):
            return
        with suppress(OSError):
            shutil.rmtree(self.path / PARTIAL, ignore_errors=True)
            for name in {RECIPE, LOG} - self._found:
                (self.path / name).unlink(missing_ok=True)
            if "." not in self._found:
                self.path.rmdir()

    def _take_lock(self) -> None:
        # The file stays open; the system drops the lock when the process ends, however it ends.
        self._lock = (self.path / LOCK).open("w", encoding="utf-8")
        try:
            import fcntl
        except ImportError:  # Windows has no fcntl; there the folder is not guarded.
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise RunFolderError(
                f"{self.path}: another emptyset process is working in this folder. Wait for it, "
                "or give another folder with --out."
            ) from error

    def _release_lock(self) -> None:
        if self._lock is not None:
            (self.path / LOCK).unlink(missing_ok=True)
            self._lock.close()

    # Stages ----------------------------------------------------------------------------------

    def record(self, stage: str) -> StageRecord | None:
        """What is recorded of a stage, whether or not its files are still there."""
        return self._stages.get(stage)

    def seconds(self) -> dict[str, float]:
        """How long each finished stage took [seconds]."""
        return {name: r.seconds for name, r in self._stages.items() if r.seconds}

    def finished(self, stage: str, inputs: Any) -> StageRecord | None:
        """The record of a stage that need not run again, or None."""
        record = self._stages.get(stage)
        if record is None or record.inputs != hash_of(inputs):
            return None
        for name, digest in record.files.items():
            if not (self.path / name).is_file() or file_digest(self.path / name) != digest:
                return None
        return record

    def run(
        self,
        stage: str,
        inputs: Any,
        work: Callable[[Workplace], dict[str, Any]],
        monitor: Monitor,
        *,
        keep_every: float = KEEP_EVERY,
    ) -> tuple[StageRecord, bool]:
        """Run a stage unless it is finished.

        Args:
            stage: Its name.
            inputs: JSON data of everything that decides the outcome.
            work: Called with its workplace; returns the stage's result, JSON data.
            monitor: Hears of progress.
            keep_every: Least time between two kept states [seconds].

        Returns:
            The record, and whether the stage was run now.
        """
        found = self.finished(stage, inputs)
        if found is not None:
            return found, False
        partial = self.path / PARTIAL / f"{stage}-{hash_of(inputs)[:12]}"
        aside = self.path / PARTIAL / f"{stage}.files"
        with disk_errors(self.path):
            for stale in (self.path / PARTIAL).glob(f"{stage}-*"):
                if stale != partial:
                    shutil.rmtree(stale)
            shutil.rmtree(aside, ignore_errors=True)
            partial.mkdir(parents=True, exist_ok=True)
            aside.mkdir(parents=True)
        self.log(f"{stage}: started")
        keeping = KeepingMonitor(monitor, partial, self.log, keep_every)
        try:
            with disk_errors(self.path):
                result = work(Workplace(aside, keeping))
                record = self._finish(stage, inputs, aside, result, keeping.seconds())
        except BaseException as error:
            # Nothing half-written stays; what was kept to resume from does.
            shutil.rmtree(aside, ignore_errors=True)
            self.log(f"{stage}: stopped by {type(error).__name__}: {error}")
            raise
        shutil.rmtree(partial, ignore_errors=True)
        self.log(f"{stage}: finished in {record.seconds:.1f} s")
        return record, True

    def _finish(
        self, stage: str, inputs: Any, aside: Path, result: dict[str, Any], seconds: float
    ) -> StageRecord:
        files = {}
        written = sorted(path for path in aside.rglob("*") if path.is_file())
        for path in written:
            name = path.relative_to(aside).as_posix()
            files[name] = file_digest(path)
            synced(path)
            # Safetensors files come readable by their owner only; the folder decides instead.
            path.chmod((self.path / RECIPE).stat().st_mode)
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            path.replace(self.path / name)
        old = self._stages.get(stage)
        for name in set(old.files if old else {}) - set(files):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(aside)
        record = StageRecord(hash_of(inputs), files, result, round(seconds, 3))
        self._stages[stage] = record
        self._write_stages()
        return record

    def discard(self, *stages: str) -> None:
        """Forget stages and remove their files: what is there must belong to this recipe."""
        with disk_errors(self.path):
            for stage in stages:
                record = self._stages.pop(stage, None)
                for name in record.files if record else ():
                    # The record of the whole run names every file; it owns none.
                    if not any(name in other.files for other in self._stages.values()):
                        (self.path / name).unlink(missing_ok=True)
            self._write_stages()

    def mark_whole(self, stage: str, inputs: Any) -> None:
        """Record that everything is done: ``finished(stage, inputs)`` then checks every file."""
        files = {name: d for record in self._stages.values() for name, d in record.files.items()}
        self._stages[stage] = StageRecord(hash_of(inputs), files, {}, 0.0)
        with disk_errors(self.path):
            self._write_stages()

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder.

        Raises:
            RunFolderError: If it is missing or not readable.
        """
        try:
            data: dict[str, Any] = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunFolderError(
                f"{self.path / name}: missing or not readable ({error}). Run the same command "
                "again to finish the run."
            ) from error
        return data

    def close(self) -> None:
        """Remove what only an unfinished run needs."""
        shutil.rmtree(self.path / PARTIAL, ignore_errors=True)

    # Files -----------------------------------------------------------------------------------

    def log(self, line: str) -> None:
        """Append a line with the time to the log; a disk that is full does not stop a run here."""
        try:
            with (self.path / LOG).open("a", encoding="utf-8") as log:
                log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        except OSError:
            return

    def _write(self, name: str, text: str) -> None:
        if (self.path / name).is_file() and (self.path / name).read_text("utf-8") == text:
            return
        aside = self.path / f".{name}.part"
        try:
            aside.write_text(text, encoding="utf-8")
            synced(aside)
            aside.replace(self.path / name)
        finally:
            aside.unlink(missing_ok=True)

    def _write_stages(self) -> None:
        stages = {name: vars(record) for name, record in self._stages.items()}
        self._write(STAGES, json.dumps({"format": FORMAT, "stages": stages}, indent=2) + "\n")

    def _read_stages(self) -> dict[str, StageRecord]:
        try:
            data = json.loads((self.path / STAGES).read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                return {}
            return {name: StageRecord(**record) for name, record in data["stages"].items()}
        except (OSError, ValueError, KeyError, TypeError):
            # Nothing is known then: every stage runs again, and no file is trusted.
            return {}


def header_of(recipe: Recipe) -> str:
    """The comment lines that open a written recipe."""
    return f"# Run again: emptyset run {RECIPE} --out DIR\n# Recipe hash: {recipe.hash()}\n"


def has_progress(path: Path) -> bool:
    """Whether a run made anything there that could be gone on with."""
    return (path / STAGES).is_file() or any((path / PARTIAL).rglob("*.safetensors"))


def _refuse_strangers(path: Path, recipe: Recipe, *, overwrite: bool) -> None:
    if path.is_file():
        raise RunFolderError(f"{path}: is a file, not a folder. Give another one with --out.")
    if not path.is_dir():
        return
    if not (path / RECIPE).is_file():
        others = sorted(p.name for p in path.iterdir() if p.name not in {LOG, LOCK, PARTIAL})
        if others and not overwrite:
            raise RunFolderError(
                f"{path}: holds files that no run wrote (for example {others[0]}). Give an empty "
                "or new folder with --out, or --overwrite to write beside them."
            )
        return
    if overwrite or not has_progress(path):
        return
    try:
        there = Recipe.load(path / RECIPE).decisive_data()
    except Exception as error:
        raise RunFolderError(
            f"{path}: its {RECIPE} cannot be read ({error}). Give another folder with --out, or "
            "--overwrite to run the new recipe here."
        ) from error
    different = differences(there, recipe.decisive_data())
    if different:
        raise RunFolderError(
            f"{path}: belongs to another run. It differs in:\n  "
            + "\n  ".join(different)
            + "\nGive another folder with --out, or --overwrite to replace what differs."
        )


def differences(there: Any, wanted: Any, path: str = "") -> list[str]:
    """``plan.bits: w8a8 there, w4a4 wanted``, one per value that differs."""
    if isinstance(there, dict) and isinstance(wanted, dict):
        lines = []
        for key in dict.fromkeys([*there, *wanted]):
            below = f"{path}.{key}" if path else str(key)
            lines += differences(there.get(key), wanted.get(key), below)
        return lines
    if isinstance(there, list) and isinstance(wanted, list) and len(there) == len(wanted):
        return [
            line
            for index, (old, new) in enumerate(zip(there, wanted, strict=True))
            for line in differences(old, new, f"{path}.{index}")
        ]
    if there == wanted:
        return []
    return [f"{path}: {_short(there)} there, {_short(wanted)} wanted"]


def _short(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value).strip('"')
