"""Files on a disk that may be full, read-only or cut off at any moment."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from emptyset.errors import RunFolderError


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint(path: Path) -> str:
    """What tells that a file, or any file of a folder, was changed, hexadecimal.

    A file is read; of a folder only names, sizes and times are, since it may hold many photos.
    """
    if path.is_file():
        return file_digest(path)
    listed = []
    for entry in sorted(path.rglob("*")):
        if entry.is_file():
            facts = entry.stat()
            listed.append([entry.relative_to(path).as_posix(), facts.st_size, facts.st_mtime_ns])
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what a disk refuses into a `RunFolderError` that says what to do."""
    try:
        yield
    except RunFolderError:
        raise
    except (OSError, SafetensorError) as error:
        explained = _explained(path, error)
        if explained is None:
            raise
        raise explained from error


def _explained(path: Path, error: OSError | SafetensorError) -> RunFolderError | None:
    number = error.errno if isinstance(error, OSError) else None
    named = error.filename if isinstance(error, OSError) else None
    text = str(error)
    if named is not None and not _within(Path(str(named)), path):
        # Somebody else's file, for example an image that cannot be read.
        return None
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text:
        return RunFolderError(
            f"{path}: the disk is full. Nothing half-written was left; free some space and run "
            "the same command again, it goes on where it stopped."
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return RunFolderError(
            f"{path}: the folder cannot be written ({os.strerror(number)}). Give a folder of "
            "yours with --out."
        )
    if number in (errno.ENOTDIR, errno.EEXIST):
        return RunFolderError(f"{path}: a file is in the way. Give another folder with --out.")
    if number == errno.ENOENT and not path.exists():
        return RunFolderError(f"{path}: the folder cannot be made. Give another with --out.")
    if number == errno.EISDIR:
        return RunFolderError(f"{path}: there is a folder of this name. Give the name of a file.")
    return None


def _within(file: Path, folder: Path) -> bool:
    """Whether the file is the folder, in it, or above it (a parent that cannot be made)."""
    file, folder = file.absolute(), folder.absolute()
    return file.is_relative_to(folder) or folder.is_relative_to(file)


def synced(path: Path) -> None:
    """Make sure that the bytes are on the disk before the file gets its name."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())
