"""The folder of a comparison: whose it is, and how its files are written."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from emptyset.comparison.settings import Comparison
from emptyset.disk import disk_errors, synced
from emptyset.errors import RunFolderError
from emptyset.run_folder import differences

COMPARISON = "compare.yaml"
RESULT = "compare.json"
TABLE = "compare.md"
PAGE = "compare.html"
ROWS = "rows"
TIMINGS = "timings.json"


@contextmanager
def claimed(out: Path, comparison: Comparison, *, overwrite: bool) -> Iterator[None]:
    """Make the folder this comparison's own, or go on in it.

    A comparison that failed before a row made anything leaves no folder behind.

    Args:
        out: The folder.
        comparison: What will be compared.
        overwrite: Take a folder of another comparison; what its rows share with this one is kept.

    Raises:
        RunFolderError: If it belongs to another comparison, holds other files or cannot be
            written.
    """
    new = not out.exists()
    with disk_errors(out):
        _refuse_strangers(out, comparison, overwrite=overwrite)
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / COMPARISON, _header(comparison) + comparison.to_yaml())
    try:
        yield
    finally:
        if new and not any((out / ROWS).glob("*")):
            with suppress(OSError):
                shutil.rmtree(out)


def write_text(path: Path, text: str) -> None:
    """Write a file, aside and renamed; one that holds the text already is left alone."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    aside = path.with_name(f".{path.name}.part")
    try:
        aside.write_text(text, encoding="utf-8")
        synced(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _header(comparison: Comparison) -> str:
    return (
        f"# Compare again: emptyset compare {COMPARISON} --out DIR\n# Hash: {comparison.hash()}\n"
    )


def _refuse_strangers(out: Path, comparison: Comparison, *, overwrite: bool) -> None:
    if out.is_file():
        raise RunFolderError(f"{out}: is a file, not a folder. Give another one with --out.")
    if overwrite or not out.is_dir():
        return
    if not (out / COMPARISON).is_file():
        others = sorted(path.name for path in out.iterdir())
        if others:
            raise RunFolderError(
                f"{out}: holds files that no comparison wrote (for example {others[0]}). Give an "
                "empty or new folder with --out, or --overwrite to write beside them."
            )
        return
    try:
        there = Comparison.load(out / COMPARISON).to_data()
    except Exception as error:
        raise RunFolderError(
            f"{out}: its {COMPARISON} cannot be read ({error}). Give another folder with --out, or "
            "--overwrite to compare here anew."
        ) from error
    if different := differences(there, comparison.to_data()):
        raise RunFolderError(
            f"{out}: belongs to another comparison. It differs in:\n  "
            + "\n  ".join(different)
            + "\nGive another folder with --out, or --overwrite: rows that stay equal are kept."
        )
