"""The practical recipes as a user runs them: one command, no recipe named; the file is judged.

    python benchmarks/reconstruction_practical.py --list
    python benchmarks/reconstruction_practical.py [--only TEXT] [--threads 2] [--set KEY=VALUE ...]

`emptyset quantize file: ... --bits B` in a process of its own, plan `integer`, images made from the
network alone; beside it the same command with real images (`--images`), of which it keeps a fifth
apart. Top-1 [%] of the file: CIFAR on all test images; ImageNet on every second image of
`imagenet_1shot` and of `imagenet_val1300`, the others are the real ones to quantize with. Seconds
are those of the whole command. `below_real` is how many points the made images cost against the
real ones, with the standard error of the paired difference. Run folders are kept in
`runs/benchmarks/practical/`, so a killed run goes on; rows that the table already has are not
measured again. Needs `../shared`. Writes `results/reconstruction_practical.md` and `.json`.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import practical_networks as networks
import torch
from kept_rows import RESULTS, Row, Table, claimed

from emptyset.evaluate.runtime import OnnxClassifier
from emptyset.measurement import batch_size_for

WORK = Path(__file__).parent.parent / "runs" / "benchmarks" / "practical"
# A fifth is judged on by the command itself: 1,024 are left.
REAL_COUNT = 1280
KEY = ("network", "bits", "images", "settings", "seed", "threads")
ABOUT = (
    "`python benchmarks/reconstruction_practical.py`: `emptyset quantize` without a recipe, plan",
    "`integer`; top-1 [%] of the file in ONNX Runtime, seconds of the whole command. Float top-1",
    "is that of the float network on the same images. `below_real`: points lost against the same",
    "command on real images, with the standard error of the paired difference, or the larger one",
    "of two independent samples (`unpaired_error`) where the answers of one run are not at hand.",
    "Networks marked `codebook` have codebook weights and re-estimated BatchNorm, so their losses",
    "stand apart. Rows marked `means`: the last block was learnt on its channels' means.",
)
AKA, C100 = "cifar10_resnet20_akamaster", "cifar100_resnet20_distiller"
BITS = {
    AKA: ("w8a8", "w4a8", "w4a4", "w3a3", "w2a4"),
    C100: ("w8a8", "w4a8", "w4a4", "w3a3"),
    "cifar10_resnet20_distiller": ("w8a8", "w4a4"),
    "cifar10_resnet32_akamaster": ("w8a8", "w4a4"),
    "cifar10_resnet8_mlperftiny": ("w8a8", "w4a4"),
    "cifar10_vit_prenorm_sachinxmpl": ("w8a8",),
    "imagenet_mobilenetv1_025_keras": ("w8a8", "w4a4"),
    "imagenet_tinydarknet": ("w8a8", "w4a4"),
    "imagenet_resnet18_pqf": ("w8a8", "w4a4"),
    "imagenet_resnet50_pqf_large": ("w8a8", "w4a4"),
    networks.SQUEEZENET: ("w8a8",),
}


@dataclass(frozen=True)
class Cell:
    """One row."""

    network: str
    bits: str
    images: str
    settings: str
    seed: int
    threads: int

    def describe(self) -> str:
        """On one line."""
        return " | ".join(str(getattr(self, name)) for name in KEY)

    @property
    def folder(self) -> Path:
        """The run folder."""
        text = "-".join(str(getattr(self, name)) for name in KEY)
        return WORK / "".join(c if c.isalnum() or c in "._-" else "_" for c in text)

    def beside(self, ending: str) -> Path:
        """A place beside the run folder, which is the command's own."""
        return self.folder.parent / (self.folder.name + ending)


def cells_of(settings: str, seed: int, threads: int) -> list[Cell]:
    """All rows; images made, then real ones."""
    return [
        Cell(network, bits, images, settings, seed, threads)
        for network, widths in BITS.items()
        for bits in widths
        for images in ("made", "real")
        if images == "real" or network not in networks.WITHOUT_BATCH_NORM
    ]


def run(cell: Cell) -> float | None:
    """The command; gives the seconds it took, or None where an earlier process had begun it."""
    program = Path(sys.executable).parent / "emptyset"
    command = [str(program), "quantize", *networks.arguments_of(cell.network)]
    command += ["--bits", cell.bits, "--seed", str(cell.seed), "--out", str(cell.folder)]
    if cell.images == "real":
        command += ["--images", str(networks.real_images(cell.network, REAL_COUNT, WORK / "real"))]
    for setting in cell.settings.split(";") if cell.settings else ():
        # Real images are not made.
        if cell.images != "real" or not setting.startswith("synthesize."):
            command += ["--set", setting]
    surroundings = os.environ | {
        "PYTHONPATH": networks.search_path(), "OMP_NUM_THREADS": str(cell.threads),
    }  # fmt: skip
    if cell.threads > 1:
        # Threads that sleep between operators take half as long again; no user asks for that.
        surroundings.pop("OMP_WAIT_POLICY", None)
    fresh = not cell.folder.exists()
    start = time.perf_counter()
    subprocess.run(command, check=True, env=surroundings, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start if fresh else None


def measure(cell: Cell) -> Row:
    """One row."""
    seconds = run(cell)
    metrics = json.loads((cell.folder / "metrics.json").read_text(encoding="utf-8"))
    row, tops, floats, right = {}, [], [], []
    for judge in networks.judges(cell.network):
        float_right = _right(_float_network(cell), judge)
        file_right = _right(OnnxClassifier(cell.folder / "model.onnx"), judge)
        row[f"top1_{judge.name}"] = round(100 * float(file_right.mean()), 2)
        tops.append(file_right)
        floats.append(float_right)
    right = np.concatenate(tops)
    np.save(cell.beside(".right.npy"), right)
    before, after = (100 * float(np.concatenate(part).mean()) for part in (floats, tops))
    stages = metrics["seconds"]
    return {
        **{name: getattr(cell, name) for name in KEY},
        "float_top1": round(before, 2), "file_top1": round(after, 2),
        "lost": round(before - after, 2), **(row if len(tops) > 1 else {}),
        "test_images": len(right), "codebook": cell.network in networks.CODEBOOKS or None,
        # Of a killed run: all stages, over all processes.
        "seconds": round(seconds if seconds is not None else sum(stages.values()), 1),
        "seconds_images": round(stages.get("images", 0.0), 1),
        "seconds_student": round(stages["student"], 1),
        "image_count": metrics["images"]["count"],
        "certificate": metrics["certificate"]["holds"],
        "integer_share": round(metrics["file"]["integer_share"], 3),
        "recipe": metrics["recipe"]["about"].partition(", on ")[0],
    }  # fmt: skip


def _float_network(cell: Cell) -> Any:
    if cell.network == networks.SQUEEZENET:
        return networks.squeezenet(str(networks.WEIGHTS / f"{cell.network}.safetensors"))
    return networks.shared.load(cell.network).module


@torch.no_grad()
def _right(predict: Any, judge: networks.Judge) -> Any:
    """For each image whether the answer is right."""
    images = judge.images
    assert images.targets is not None
    size = batch_size_for(tuple(images.images.shape[1:]))  # type: ignore[arg-type]
    pairs = zip(images.images.split(size), images.targets.split(size), strict=True)
    return torch.cat([predict(x).argmax(1) == y for x, y in pairs]).numpy()


def _refiners(row: Row) -> str:
    """What the recipe did, without how often."""
    return re.sub(r" \([\d,]+ steps\)", "", row["recipe"].split(" on ")[0])


def compare_pairs(table: Table) -> None:
    """Write beside every row of made images what they cost against real ones."""
    rows = {tuple(row[name] for name in KEY): row for row in table.rows()}
    for row in rows.values():
        if row["images"] != "made":
            continue
        cells = [Cell(**{n: row[n] for n in KEY} | {"images": i}) for i in ("made", "real")]
        files = [cell.beside(".right.npy") for cell in cells]
        real = rows.get(tuple(getattr(cells[1], n) for n in KEY))
        # The same refiners: where they have changed since, the older row is to be measured again.
        # Making images takes its part of the work, so numbers of steps may be smaller.
        alike = real is not None and _refiners(real) == _refiners(row)
        if alike and all(f.is_file() for f in files):
            gap, error = networks.paired_difference(*(np.load(f) for f in files))
            table.write(row | {"below_real": round(gap, 2), "standard_error": round(error, 2)})
        elif alike and "below_real" not in row:
            gap, error = networks.unpaired_difference(row, real)
            table.write(row | {"below_real": round(gap, 2), "unpaired_error": round(error, 2)})


def main() -> None:
    """Measure the rows that are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="rows whose description holds this text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--drop", action="store_true", help="remove run folders that are done")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    title = "The practical recipes, one command each"
    table = Table("reconstruction_practical", KEY, title, ABOUT, options.results)
    for cell in cells_of(";".join(options.set), options.seed, options.threads):
        if options.only not in cell.describe() or table.has(vars(cell)):
            continue
        print(cell.describe(), flush=True)
        if options.list or not claimed(cell.beside(".claim")):
            continue
        row = measure(cell)
        print(row, flush=True)
        table.write(row)
        compare_pairs(table)
        if options.drop:
            shutil.rmtree(cell.folder)


if __name__ == "__main__":
    main()
