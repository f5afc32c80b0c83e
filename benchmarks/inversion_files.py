"""The best combination of images and student recipe as an integer file, beside real images.

    python benchmarks/inversion_files.py [--only TEXT] [--threads 2]

The same synthetic images and the same training as in `inversion_accuracy.py`, but on plan
`integer`: what is measured is the file, in ONNX Runtime, on all 10,000 test images. Images and
trainings are kept in `runs/benchmarks/`; rows that the table has are not measured again.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import inversion_accuracy as accuracies
import inversion_cells as cells
import shared_networks as shared
import torch
from kept_rows import Table, claimed

import emptyset
from emptyset.evaluate.accuracy import accuracy
from emptyset.evaluate.runtime import OnnxClassifier
from emptyset.images.image_set import ImageSet
from emptyset.kept_states import KeepingMonitor
from emptyset.monitor import SILENT
from emptyset.refiners.distill import Distill, DistillConfig

CELLS = [
    cells.Cell(network, images, bits, cells.OURS, plan="integer")
    for network in (cells.AKA, cells.C100)
    for bits in ("w4a4", "w3a3")
    for images in (cells.BEST, "real 5120")
]
KEY = ("network", "images", "bits", "seed")
TABLE = Table(
    "inversion_files",
    KEY,
    "The best combination of images and recipe as a file",
    (
        "`python benchmarks/inversion_files.py`: plan `integer`, refiner `distill`, preset",
        "`learned`; top-1 [%] of the file in ONNX Runtime on 10,000 test images, last epoch.",
    ),
)


def folder_of(cell: cells.Cell) -> Path:
    """Where a row keeps what it has."""
    return accuracies.folder_of("file", *(getattr(cell, name) for name in KEY))


def measure(cell: cells.Cell) -> dict[str, Any]:
    """From images to a certified file, and the file on the test images."""
    teacher, test = shared.load(cell.network), shared.labelled_images(cell.network)
    images, said = accuracies.images_of(cell.network, teacher, cell.images, cell.seed)
    student = emptyset.prepare(teacher, cell.bits)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(cell.seed))
    calibration = ImageSet(images.images[order[:1024]])
    folder = folder_of(cell)
    start = time.perf_counter()
    emptyset.refine(student, calibration, seed=cell.seed)
    config = DistillConfig(**cells.RECIPES[cell.recipe].settings(cell.bits))
    monitor = KeepingMonitor(SILENT, folder, print)
    Distill(config).refine(student, images, seed=cell.seed, monitor=monitor)
    path = folder / "model.onnx"
    artefact = emptyset.export(student, path, float_path=folder / "float.onnx")
    certificate = emptyset.certify(path, student, calibration, simulation=artefact.simulation)
    seconds = time.perf_counter() - start
    before = accuracies.float_top1_of(teacher, cell.network, test)
    after = 100 * accuracy(OnnxClassifier(path), test).top1
    return {
        "network": cell.network, "images": cell.images, "bits": cell.bits, "seed": cell.seed,
        "float_top1": round(before, 2), "file_top1": round(after, 2),
        "lost": round(before - after, 2), "certificate": certificate.holds,
        "integer_share": round(artefact.integer_share, 3),
        "size_ratio": round(artefact.size_bytes / (artefact.float_size_bytes or 1), 3),
        "images_count": len(images), "seconds_images": said["seconds_images"],
        "seconds_training_and_export": round(seconds),
    }  # fmt: skip


def main() -> None:
    """Measure the rows that are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cells whose description holds this text")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for cell in CELLS:
        if options.only not in cell.describe() or TABLE.has(vars(cell)):
            continue
        print(cell.describe(), flush=True)
        if claimed(folder_of(cell)):
            row = measure(cell)
            print(row, flush=True)
            TABLE.write(row)


if __name__ == "__main__":
    main()
