"""Block reconstruction on real and on made images: AdaRound, BRECQ, QDrop and Genie-M side by side.

    python benchmarks/reconstruction_accuracy.py --list
    python benchmarks/reconstruction_accuracy.py [--iterations 1500] [--seed 0] [--only TEXT]

Protocol: plan `edges_8bit`, second layer's input 8 bits in every row, shortcuts quantized as in
the released codes, batches of 32 of 1,024 images, seed 0, no early stop; everything else as
published. Top-1 [%] of the simulated student on all 10,000 test images. `--iterations` are those of
every block (AdaRound: of every layer; BRECQ's activations take a quarter of them, as published).
Images and learnt blocks are kept in `runs/benchmarks/`, so a killed run goes on where it was; rows
that the table already has are not measured again. Needs `../shared`. Writes
`results/reconstruction_accuracy.md` and `.json`.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import inversion_cells as cells
import shared_networks as shared
import torch
from inversion_accuracy import folder_of, images_of, top1
from kept_rows import RESULTS, Table, claimed

import emptyset
from emptyset.cli.freed_memory import keep_freed_memory
from emptyset.kept_states import KeepingMonitor
from emptyset.monitor import SILENT

COUNT, BATCH = 1024, 32
NETWORK = "cifar10_resnet20_akamaster"
KEY = ("network", "bits", "images", "method", "iterations", "seed")
ABOUT = (
    "`python benchmarks/reconstruction_accuracy.py`: plan `edges_8bit`, second layer's input 8",
    "bits, shortcuts quantized as in the released codes (`quantized_shortcuts`), 1,024 images,",
    "batches of 32, seed 0, no early stop; top-1 [%] of the simulated student on 10,000 test",
    "images. `iterations`: of every block (AdaRound: every layer; BRECQ's activations: a quarter).",
    "BatchNorm folded, for Genie-M frozen, as in the released codes.",
    "`genie, float shortcuts`: identity shortcuts are not quantized, as in the released code where",
    "they are no module of their own, as in this network. Rows marked `means` are from when the",
    "last block was learnt on its channels' means, BRECQ's among them (Genie-D's apart) also from",
    "before its activations learnt beside learnt rounding.",
    "`zeroq+il`, `genie_d`, `dffg`: made from the network; Genie-D with a quarter of its 4,000",
    "steps. Seconds are those of one thread beside other work; missing where a run was suspended.",
)
# Beside the images of the inversion tables; as many as there are real ones.
cells.IMAGES["zeroq+il 1024"] = replace(cells.IMAGES["zeroq+il"], count=COUNT)
cells.IMAGES["genie_d 1024"] = cells.Images("genie_d", COUNT, {"steps": 1000})
cells.IMAGES["dffg 1024"] = cells.Images("dffg", COUNT, {"batch_size": 128, "steps": 200})
IMAGES = ("real 1024", "zeroq+il 1024", "genie_d 1024", "dffg 1024")
METHODS = ("calibrate", "adaround", "brecq", "qdrop", "genie")
FLOAT_SHORTCUTS = "genie, float shortcuts"
BITS = ("w4a4", "w2a4")


@dataclass(frozen=True)
class Cell:
    """One row."""

    network: str
    bits: str
    images: str
    method: str
    iterations: int
    seed: int = 0

    def describe(self) -> str:
        """On one line."""
        values = (str(getattr(self, name)) for name in KEY)
        return " | ".join(values)

    @property
    def refiner(self) -> str:
        """Registered name."""
        return self.method.partition(",")[0]

    def settings(self) -> dict[str, Any]:
        """Of the refiner."""
        if self.method == "calibrate":
            return {}
        settings: dict[str, Any] = {"steps": self.iterations, "batch_size": BATCH}
        if self.refiner == "brecq":
            settings["activation_steps"] = self.iterations // 4
        return settings


def cells_of(networks: list[str], iterations: int, bits: list[str], seed: int) -> list[Cell]:
    """All rows, the quick ones of every set of images first."""
    return [
        Cell(network, width, images, method, 0 if method == "calibrate" else iterations, seed)
        for network in networks
        for images in IMAGES
        for width in bits
        for method in (*METHODS, *([FLOAT_SHORTCUTS] if images.startswith("real") else []))
    ]


def measure(cell: Cell) -> dict[str, Any]:
    """One row."""
    teacher = shared.load(cell.network)
    test = shared.labelled_images(cell.network)
    images, said = images_of(cell.network, teacher, cell.images, cell.seed)
    student = emptyset.prepare(
        teacher, cell.bits, plan="edges_8bit",
        batch_norm="frozen" if cell.refiner == "genie" else "fold",
        quantized_shortcuts=cell.method != FLOAT_SHORTCUTS,
    )  # fmt: skip
    folder = folder_of(*(getattr(cell, name) for name in KEY))
    monitor = KeepingMonitor(SILENT, folder, print)
    emptyset.refine(
        student, images, cell.refiner, seed=cell.seed, monitor=monitor, **cell.settings()
    )
    seconds = monitor.seconds()  # of processes that were killed, too
    before, after = top1(teacher.module, test), top1(student, test)
    for path in folder.iterdir():
        path.unlink()
    return {
        "network": cell.network, "bits": cell.bits, "images": cell.images,
        "method": cell.method, "iterations": cell.iterations, "seed": cell.seed,
        "float_top1": round(before, 2), "top1": round(after, 2), "lost": round(before - after, 2),
        "seconds": round(seconds), "seconds_images": said["seconds_images"],
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def main() -> None:
    """Measure the rows that are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", default=NETWORK)
    parser.add_argument("--bits", default=",".join(BITS))
    parser.add_argument("--iterations", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="rows whose description holds this text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    # As the command line does.
    keep_freed_memory()
    torch.set_flush_denormal(True)
    table = Table(
        "reconstruction_accuracy", KEY, "Block reconstruction on real and made images", ABOUT,
        options.results,
    )  # fmt: skip
    wanted = options.networks.split(","), options.iterations, options.bits.split(",")
    for cell in cells_of(*wanted, options.seed):
        if options.only not in cell.describe() or table.has(vars(cell)):
            continue
        print(cell.describe(), flush=True)
        if not options.list and claimed(folder_of(*(getattr(cell, name) for name in KEY))):
            row = measure(cell)
            print(row, flush=True)
            table.write(row)


if __name__ == "__main__":
    main()
