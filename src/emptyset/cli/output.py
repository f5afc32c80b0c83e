"""What commands print: results on stdout, everything else on stderr."""

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emptyset.errors import RecipeError

if TYPE_CHECKING:
    from rich.console import Console

PIPED_WIDTH = 120


def say(message: str) -> None:
    """A line for the person, on stderr."""
    print(message, file=sys.stderr, flush=True)


def show_json(data: Any) -> None:
    """The result for machines, on stdout."""
    print(json.dumps(data, indent=2, ensure_ascii=False, default=str))


def console() -> "Console":
    """Where tables go. Not a terminal: wide enough that nothing is cut."""
    from rich.console import Console

    if sys.stdout.isatty():
        return Console()
    return Console(width=max(PIPED_WIDTH, shutil.get_terminal_size().columns), no_color=True)


def require_places(*, report: Path | None, pictures: Path | None = None) -> None:
    """Refuse a page that is a folder, and a folder that is a file, before the work.

    Raises:
        RecipeError: Naming the option.
    """
    if report is not None and report.is_dir():
        raise RecipeError(
            f"--report: {report} is a folder. Name the page, for example {report / 'page.html'}."
        )
    if pictures is not None and pictures.exists() and not pictures.is_dir():
        raise RecipeError(f"--pictures: {pictures} is a file. Name a folder for the pictures.")


def show_result(metrics: dict[str, Any], folder: str, report: str) -> None:
    """The table at the end of a whole job."""
    from rich import box
    from rich.table import Table

    from emptyset.report.facts import result_rows

    table = Table(box=box.SIMPLE_HEAD, title=_title(metrics), title_justify="left")
    table.add_column("")
    table.add_column("float", justify="right")
    table.add_column("quantized", justify="right")
    table.add_column("", overflow="fold")
    for row in result_rows(metrics):
        table.add_row(row.name, row.before, row.after, row.remark)
    shown = console()
    shown.print(table)
    shown.print(f"run folder  {folder}", soft_wrap=True, highlight=False)
    shown.print(f"report      {report}", soft_wrap=True, highlight=False)


def _title(metrics: dict[str, Any]) -> str:
    from emptyset.report.facts import described_bits

    plan = metrics["plan"]["name"]
    return f"{metrics['teacher']['name']}, {described_bits(metrics)}, plan {plan}"
