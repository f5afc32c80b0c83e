"""What learning block by block did to the error of each block, as tables of the page."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from emptyset.report.rendering import small

UNKNOWN = "–"


@dataclass(frozen=True)
class BlockRow:
    """One block (or layer).

    Attributes:
        name: Module path.
        start: Error before, as a text.
        final: Error after.
        left: How much of the error is left, in per cent.
        steps: Optimizer steps that were done.
        kept: Whether what was learnt was kept.
    """

    name: str
    start: str
    final: str
    left: str
    steps: str
    kept: bool


@dataclass(frozen=True)
class BlockTable:
    """One walk down the blocks.

    Attributes:
        course: What was learnt, by whom.
        rows: In order of execution.
    """

    course: str
    rows: list[BlockRow]


def block_tables(records: Sequence[dict[str, Any]]) -> list[BlockTable]:
    """A table for every record that tells of blocks; other records are passed over.

    Args:
        records: What refiners had to tell.
    """
    return [
        BlockTable(record["course"], [_row(block) for block in record["blocks"]])
        for record in records
        if "blocks" in record
    ]


def _row(block: dict[str, Any]) -> BlockRow:
    start, final = block["start"], block["final"]
    known = start is not None and final is not None
    left = f"{100 * final / start:.1f} %" if known and start > 0 else UNKNOWN
    return BlockRow(
        block["block"], _error(start), _error(final), left, f"{block['steps']:,}", block["kept"]
    )


def _error(value: float | None) -> str:
    return UNKNOWN if value is None else small(value)
