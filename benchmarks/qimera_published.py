"""What Qimera's paper (Choi et al. 2021, arXiv:2111.02625) reports, beside what is measured.

Its networks are ResNet-20 with 93.89 % (CIFAR-10) and 70.33 % (CIFAR-100), trained elsewhere, so
points lost are compared, after its whole schedule.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kept_rows import Row

AKA = "cifar10_resnet20_akamaster"
C100 = "cifar100_resnet20_distiller"
FLOAT = {AKA: 93.89, C100: 70.33}
# Tables 2 and 3: top-1 [%] at w4a4 and at w5a5.
_TOP1: dict[str, dict[str, tuple[float, float]]] = {
    AKA: {
        "zeroq 64": (79.30, 91.34),
        "zaq": (92.13, 93.36),
        "gdfq": (90.25, 93.38),
        "gdfq, CutMix": (89.58, 92.75),
        "gdfq, Mixup": (88.69, 92.79),
        "qimera": (91.26, 93.46),
        "qimera on zaq": (93.91, 93.84),
        "autorecon": (88.55, 92.88),
        "qimera on autorecon": (91.16, 93.42),
    },
    C100: {
        "zeroq 64": (47.45, 65.61),
        "zaq": (60.42, 68.70),
        "gdfq": (63.39, 66.12),
        "gdfq, CutMix": (62.74, 67.51),
        "gdfq, Mixup": (62.99, 67.78),
        "qimera": (65.10, 69.02),
        "qimera on zaq": (69.30, 69.58),
        "autorecon": (62.76, 68.40),
        "qimera on autorecon": (65.33, 68.80),
    },
}
# Table 1, CIFAR-100 at w4a4; its 1,500 confusing images are 15 a class.
_TABLE_1 = {
    "real 5120": 68.28,
    "gdfq, as many unconfusing": 63.91,
    "gdfq, 15 most confusing a class": 65.75,
}
# Table 4, CIFAR-100 at w4a4; p = 0.4 and 0.7 of every K.
SHARES = (0.4, 0.7)
_TABLE_4 = {
    "SE": {2: (64.14, 64.55), 10: (64.55, 64.37), 25: (64.21, 64.11), 100: (63.77, 64.26)},
    "SE+DM": {2: (64.73, 64.76), 10: (64.01, 64.22), 25: (63.60, 64.32), 100: (63.82, 64.63)},
    "SE+EEI": {2: (64.64, 64.54), 10: (64.89, 64.83), 25: (65.23, 64.33), 100: (64.88, 64.70)},
    "SE+DM+EEI": {2: (64.90, 64.76), 10: (65.10, 64.52), 25: (64.72, 64.40), 100: (64.63, 64.79)},
}
# Table 5: distance ratio and intrusion, by the parts; its Mixup row is 2.44 and 0.800, 3.14 and
# 0.400.
_TABLE_5 = {
    AKA: {"SE": (1.58, 0.00260), "SE+DM": (1.67, 0.00073), "SE+DM+EEI": (1.57, 0.00013)},
    C100: {"SE": (1.64, 0.053), "SE+DM": (1.59, 0.044), "SE+DM+EEI": (1.52, 0.029)},
}
_PARTS = {"qimera": "SE+DM+EEI", "qimera, SE only": "SE", "qimera, SE+DM only": "SE+DM"}
# The cell of the grid that has the settings of the released script.
USUAL = (10, 0.4)


def cell_name(parts: str, together: int, share: float) -> str:
    """What a cell of the grid is called; the usual one with all parts is Qimera."""
    if (parts, together, share) == ("SE+DM+EEI", *USUAL):
        return "qimera"
    return f"{parts}, K={together}, p={share}"


def published(network: str, source: str, bits: str) -> Row:
    """``paper_lost`` [points], ``paper_ratio`` and ``paper_intrusion``, as far as there are any."""
    found: Row = {}
    if network not in FLOAT:
        return found
    top1 = None
    if bits in ("w4a4", "w5a5"):
        pair = _TOP1[network].get(source)
        top1 = None if pair is None else pair[bits == "w5a5"]
    in_grid = {
        cell_name(parts, k, p): (parts, values[number])
        for parts, by_number in _TABLE_4.items()
        for k, values in by_number.items()
        for number, p in enumerate(SHARES)
    }
    parts = _PARTS.get(source)
    if network == C100 and bits == "w4a4":
        top1 = _TABLE_1.get(source, top1)
        if source in in_grid:
            parts, top1 = in_grid[source]
            if source not in [cell_name(name, *USUAL) for name in _TABLE_4]:
                parts = None
    if top1 is not None:
        found["paper_lost"] = round(FLOAT[network] - top1, 2)
    if parts in _TABLE_5[network] and bits == "w4a4":
        found["paper_ratio"], found["paper_intrusion"] = _TABLE_5[network][parts]
    return found


def grid_summary(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Table 4 at its usual cell and at its best one, as far as it is measured."""
    last = {row["source"]: row["last"] for row in rows if isinstance(row["last"], float)}
    lines = [
        "| parts | K=10, p=0.4 | paper, the same | best cell | top-1 | cells measured | "
        "paper's best cell | paper's top-1 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    if "gdfq" in last:
        lines.append(f"| none (GDFQ) | {last['gdfq']} | 63.39 |  | {last['gdfq']} | 1 |  | 63.39 |")
    for parts, theirs in _TABLE_4.items():
        cells = {
            (k, p): last[cell_name(parts, k, p)]
            for k in theirs
            for p in SHARES
            if cell_name(parts, k, p) in last
        }
        if not cells:
            continue
        flat = {(k, p): theirs[k][number] for k in theirs for number, p in enumerate(SHARES)}
        best, best_theirs = max(cells, key=lambda c: cells[c]), max(flat, key=lambda c: flat[c])
        lines.append(
            f"| {parts} | {cells.get(USUAL, '')} | {flat[USUAL]} | K={best[0]}, p={best[1]} | "
            f"{cells[best]} | {len(cells)} | K={best_theirs[0]}, p={best_theirs[1]} | "
            f"{flat[best_theirs]} |"
        )
    return lines
