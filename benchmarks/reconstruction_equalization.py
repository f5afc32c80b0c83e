"""digits-mobilenet on integers with and without equalization, at 8 and at few bits.

    python benchmarks/reconstruction_equalization.py [--bits w8a8,w2a4,...] [--refine NAME,...]
                                                     [--threads 2]

Depthwise convolutions give channels of very different ranges, so this is where equalization should
help. Every row is a student of the same images (those of the bits' practical recipe, made once per
recipe): not equalized, by weights (the paper) and by activations; then calibrated, calibrated and
bias-corrected, or what the practical recipe does. Top-1 [%] of the certified file in ONNX Runtime
on the 797 held-out scans, and its divergence from the float network [nat], which tells small
differences apart. Writes `results/reconstruction_equalization.md` and `.json`; rows that are there
already are not measured again.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from inversion_accuracy import folder_of
from kept_rows import RESULTS, Row, Table

import emptyset
from emptyset.images.image_set import ImageSet
from emptyset.kept_states import KeepingMonitor
from emptyset.monitor import SILENT
from emptyset.recipe import hash_of
from emptyset.recipe_by_bits import practical_choice, practical_recipe
from emptyset.teachers.cost import cost_of
from emptyset.teachers.embedded import held_out_images_path
from emptyset.teachers.teacher import Teacher

NETWORK = "embedded:digits-mobilenet"
KEY = ("network", "bits", "equalize", "refine", "count", "threads")
ABOUT = (
    "`python benchmarks/reconstruction_equalization.py`: plan `integer`, images of the practical",
    "recipe of the bits, seed 0; top-1 [%] of the file in ONNX Runtime on 797 scans, `kl` its",
    "divergence from the float network there [nat]. `practical`: what the recipe does to networks",
    "with depthwise convolutions: at w8a8 calibration and bias correction, at w4a8 Genie-M, below",
    "calibration, bias correction and training of the whole. The recipe equalizes at w8a8 only.",
)
EQUALIZATIONS = ("none", "weights", "activations")
CALIBRATED: tuple[dict[str, Any], ...] = ({"method": "calibrate"},)
CORRECTED = (*CALIBRATED, {"method": "bias_correction", "statistics": "empirical"})


def refiners_of(name: str, bits: str, teacher: Teacher) -> list[dict[str, Any]]:
    """What follows equalization."""
    if name == "practical":
        found = practical_choice(practical_recipe(bits), cost_of(teacher)).data["refine"]
        return [section for section in found if section["method"] != "equalize"]
    return [dict(section) for section in {"calibrate": CALIBRATED, "corrected": CORRECTED}[name]]


def images_of(teacher: Teacher, bits: str, count: int | None) -> ImageSet:
    """Images of the bits' recipe, kept for the next row."""
    section = practical_recipe(bits).synthesize
    if count is not None:
        section["count"] = count
    folder = folder_of("digits-mobilenet", "practical", hash_of(section)[:12])
    if (folder / "images").exists():
        return ImageSet.load(folder / "images")
    settings = {k: v for k, v in section.items() if k not in ("method", "count")}
    monitor = KeepingMonitor(SILENT, folder, print)
    made = emptyset.synthesize(
        teacher, section["method"], section["count"], seed=0, monitor=monitor, **settings
    )
    made.save(folder / "images")
    return made


def measure(cell: Row, teacher: Teacher, images: ImageSet) -> Row:
    """One row."""
    test = emptyset.images_from(held_out_images_path(), teacher)
    student = emptyset.prepare(teacher, cell["bits"])
    start = time.perf_counter()
    if cell["equalize"] != "none":
        emptyset.refine(student, images, "equalize", balance=cell["equalize"])
    for section in refiners_of(cell["refine"], cell["bits"], teacher):
        settings = {key: value for key, value in section.items() if key != "method"}
        emptyset.refine(student, images, section["method"], **settings)
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        artefact = emptyset.export(student, path)
        certificate = emptyset.certify(path, student, images, simulation=artefact.simulation)
        found = emptyset.measure(path, teacher, test)
    assert found.teacher is not None
    assert found.quantized is not None
    return cell | {
        "float_top1": round(100 * found.teacher.top1, 2),
        "file_top1": round(100 * found.quantized.top1, 2),
        "kl": round(found.agreement.kl, 5), "agreement": round(100 * found.agreement.share, 2),
        "certificate": certificate.holds, "integer_share": round(artefact.integer_share, 3),
        "seconds": round(seconds, 1),
    }  # fmt: skip


def main() -> None:
    """Measure the rows that are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", default="w8a8,w4a8,w4a4")
    parser.add_argument("--refine", default="calibrate,corrected,practical")
    parser.add_argument("--count", type=int, help="images; the recipe's by default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    title = "Equalization of a network with depthwise convolutions"
    table = Table("reconstruction_equalization", KEY, title, ABOUT, options.results)
    teacher = emptyset.load(NETWORK)
    for bits in options.bits.split(","):
        count = options.count or practical_recipe(bits).synthesize["count"]
        for refine in options.refine.split(","):
            for equalize in EQUALIZATIONS:
                cell = {
                    "network": NETWORK, "bits": bits, "equalize": equalize, "refine": refine,
                    "count": count, "threads": options.threads,
                }  # fmt: skip
                if table.has(cell):
                    continue
                row = measure(cell, teacher, images_of(teacher, bits, options.count))
                print(row, flush=True)
                table.write(row)


if __name__ == "__main__":
    main()
