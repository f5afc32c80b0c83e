"""How much BatchNorm statistics and similarity should weigh where a generator has little time.

    python benchmarks/qimera_statistics.py [--only TEXT] [--threads 2]

A generator learns alone, then a student learns from a stored set of its images, as in the sweeps of
the inversion tables (`results/inversion_dffg_sweep.md`). Needs `../shared`.
"""

import argparse
from dataclasses import dataclass
from typing import Any

import shared_networks as shared
import torch
from inversion_accuracy import top1
from kept_rows import Row, Table
from qimera_cells import AKA, C100, SOURCES, STRICT, UNSCALED

import emptyset
from emptyset import generation
from emptyset.cli.freed_memory import keep_freed_memory
from emptyset.evaluate.image_quality import image_quality
from emptyset.refiners.distill import Distill, DistillConfig

KEY = ("network", "source", "statistics_weight", "similarity_weight", "lessons")
TABLE = Table(
    "qimera_statistics",
    KEY,
    "Weights of BatchNorm statistics and of similarity in short schedules of a generator",
    [
        "`python benchmarks/qimera_statistics.py`: a generator learns `lessons` batches of 128",
        "alone. 512 of 1,280 images of it: summed distance of BatchNorm statistics, similarity,",
        "share that the teacher puts in the class asked for. A student at w3a3, every layer: top-1",
        "[%] of 10,000 test images calibrated on these 1,280, and after 100 updates of `learned`",
        "(Mixup, batches of 128). Seed 0. `embeddings unscaled`: `embedding_spread: null`.",
    ],
)
COUNT, JUDGED, BATCH = 1280, 512, 128


@dataclass(frozen=True)
class Cell:
    """One row."""

    network: str
    source: str
    statistics_weight: float
    similarity_weight: float = 0.0
    lessons: int = 333


CELLS = [
    *(Cell(AKA, UNSCALED[0], weight) for weight in (0.1, 1.0, 10.0, 100.0)),
    Cell(C100, UNSCALED[0], 0.1),
]


def measure(cell: Cell) -> Row:
    """One row."""
    teacher, test = shared.load(cell.network), shared.labelled_images(cell.network)
    about = SOURCES[cell.source]
    source = generation.source(
        teacher, about.method, seed=0,
        statistics_weight=cell.statistics_weight, similarity_weight=cell.similarity_weight,
        **about.settings,
    )  # fmt: skip
    source.begin(cell.lessons, BATCH)
    for _ in range(cell.lessons):
        source.next_batch(BATCH)
    images = source.drawn(COUNT, seed=5)
    quality = image_quality(images.subset(torch.arange(JUDGED)), teacher, batch_size=BATCH)
    assert quality.distance is not None
    strict: dict[str, Any] = {"strict": True} if cell.network in STRICT else {}
    student = emptyset.prepare(teacher, "w3a3", plan="every_layer", batch_norm="fold", **strict)
    emptyset.refine(student, images, seed=0)
    calibrated = top1(student, test)
    config = DistillConfig(steps=100, batch_size=BATCH, mixing="mixup")
    Distill(config).refine(student, images, seed=0)
    return {
        **vars(cell),
        "bn_distance": round(quality.distance.sum_l2, 1),
        "similarity": round(quality.diversity.similarity, 3),
        "similarity_in_class": round(quality.diversity.similarity_within_class or 0.0, 3),
        "class_agreement": round(quality.diversity.class_agreement or 0.0, 3),
        "calibrated": round(calibrated, 2),
        "last": round(top1(student, test), 2),
    }


def main() -> None:
    """Measure the rows that are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="rows whose description holds this text")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    torch.set_flush_denormal(True)
    for cell in CELLS:
        described = " | ".join(str(value) for value in vars(cell).values())
        if options.only in described and not TABLE.has(vars(cell)):
            print(described, flush=True)
            TABLE.write(measure(cell))


if __name__ == "__main__":
    main()
