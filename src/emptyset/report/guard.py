"""The collapse guard: is the student still the network it was, and if not, which layers did it?"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from emptyset.report.layer_table import LayerRow

WARN_BELOW = 0.85
MOST_GUILTY = 5
# Layers that together carry this share of the summed damage are called guilty.
GUILTY_SHARE = 0.8


@dataclass(frozen=True)
class Verdict:
    """What the guard found.

    Attributes:
        agreement: Share of images where student and teacher name the same class, 0..1.
        collapsed: Whether the guard warns.
        guilty: Layers by output-level damage, worst first; empty where nothing is wrong.
        proposal: What to try, one option a line.
    """

    agreement: float
    collapsed: bool
    guilty: tuple[str, ...] = ()
    proposal: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def message(self) -> str:
        """For a person: what is wrong, where, and what to do."""
        lines = [f"The student agrees with the teacher on only {self.agreement:.1%} of the images."]
        if self.guilty:
            lines.append("Layers that do most of it: " + ", ".join(self.guilty) + ".")
        if self.proposal:
            lines.append("Try: " + "  or  ".join(self.proposal))
        return "\n".join(lines)


def judge(agreement: float, rows: Sequence[LayerRow], *, least: float | None = None) -> Verdict:
    """Compare the agreement with what is normal, and name the layers that cost most.

    Args:
        agreement: Share of images where student and teacher name the same class, 0..1.
        rows: The layer table.
        least: The user's own limit; it also makes the guard speak.
    """
    if agreement >= max(WARN_BELOW, least or 0.0):
        return Verdict(agreement, collapsed=False)
    ranked = sorted(rows, key=lambda row: row.damage, reverse=True)
    total = sum(row.damage for row in rows)
    guilty: list[LayerRow] = []
    for row in ranked[:MOST_GUILTY]:
        if total == 0 or sum(one.damage for one in guilty) >= GUILTY_SHARE * total:
            break
        guilty.append(row)
    return Verdict(
        agreement,
        collapsed=True,
        guilty=tuple(row.name for row in guilty),
        proposal=_proposal(guilty, rows),
    )


def _proposal(guilty: Sequence[LayerRow], rows: Sequence[LayerRow]) -> tuple[str, ...]:
    low = [row for row in guilty if min(row.weight_bits, row.activation_bits or 8) < 8]
    proposals = []
    if low:
        proposals.append(" ".join(f"--set plan.overrides.{row.name}=w8a8" for row in low))
    weight_bits = min((row.weight_bits for row in rows), default=8)
    activation_bits = min((row.activation_bits or 8 for row in rows), default=8)
    if weight_bits < 4 or activation_bits < 8:
        proposals.append(f"--bits w{max(weight_bits, 4)}a8")
    elif weight_bits < 8:
        proposals.append("--bits w8a8")
    if not proposals:
        proposals.append("--images DIR with a few real images")
    return tuple(proposals)
