"""A committed table whose rows are measured one by one, by several processes, over many days."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """``NAME.json`` and ``NAME.md`` beside each other.

    Attributes:
        name: Of both files.
        key: Columns that tell a row from all others.
        title: Of the page.
        about: Lines under the title.
        folder: Where the files are.
    """

    name: str
    key: tuple[str, ...]
    title: str
    about: Sequence[str]
    folder: Path = RESULTS

    def rows(self) -> list[Row]:
        """What is there."""
        path = self.folder / f"{self.name}.json"
        found: list[Row] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        return found

    def has(self, key: Mapping[str, Any]) -> bool:
        """Whether the row was measured before."""
        return tuple(key[k] for k in self.key) in {self._key(row) for row in self.rows()}

    def write(self, *new: Row) -> None:
        """The table with these rows; read again, as another process may have written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = {self._key(row): row for row in [*self.rows(), *new]}
        rows = [kept[key] for key in sorted(kept, key=str)]
        self._replace("json", json.dumps(rows, indent=1) + "\n")
        columns = list(dict.fromkeys(column for row in rows for column in row))
        lines = [
            f"# {self.title}", "", *self.about, "",
            f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}",
            *(f"| {' | '.join(_shown(row.get(c)) for c in columns)} |" for row in rows),
        ]  # fmt: skip
        self._replace("md", "\n".join(lines) + "\n")

    def _key(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row[k] for k in self.key)

    def _replace(self, ending: str, text: str) -> None:
        aside = self.folder / f"{self.name}.{os.getpid()}.part"
        aside.write_text(text, encoding="utf-8")
        aside.replace(self.folder / f"{self.name}.{ending}")


def _shown(value: Any) -> str:
    return "" if value is None else str(value)


def claimed(folder: Path) -> bool:
    """Take a piece of work for this process; False where a process that lives has it."""
    claim = folder / "claimed"
    with suppress(OSError, ValueError):
        os.kill(int(claim.read_text(encoding="utf-8")), 0)
        return False
    folder.mkdir(parents=True, exist_ok=True)
    claim.write_text(str(os.getpid()), encoding="utf-8")
    return True
