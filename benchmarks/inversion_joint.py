"""Whether it helps to match BatchNorm statistics over a whole set instead of batch by batch.

    python benchmarks/inversion_joint.py --list
    python benchmarks/inversion_joint.py [--only TEXT] [--steps 250] [--updates 300] [--threads 2]

Every row is one set of 1,024 images for `cifar10_resnet20_akamaster`. Rows of one method differ in
nothing but whose statistics are matched (and, where the name says so, in the size of batches or of
turns): the same seed, the same number of image-iterations. Measured are the distance from the
stored statistics of the whole set and of the batches that were optimised together, how often the
teacher names the class that an image was made for, the seconds, and top-1 on all test images of two
students, `every_layer`: w4a4, calibrated only, and w3a3, trained shortly by `distill`.

Images and trainings are kept in `runs/benchmarks/`, so a killed run goes on where it was; rows that
the table already has are not measured again. Needs `../shared`.
"""

import argparse
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import shared_networks as shared
import torch
from inversion_accuracy import top1
from inversion_cells import DEEP_INVERSION_ON_CIFAR
from kept_rows import Table

import emptyset
from emptyset.evaluate.batch_norm_distance import batch_norm_distance
from emptyset.images.image_set import ImageSet
from emptyset.inversion.budget import image_iterations, with_steps
from emptyset.kept_states import KeepingMonitor
from emptyset.monitor import SILENT
from emptyset.registry import synthesizers
from emptyset.teachers.teacher import Teacher

NETWORK = "cifar10_resnet20_akamaster"
COUNT = 1024
WORK = Path(__file__).parent.parent / "runs" / "benchmarks"
KEY = ("images", "statistics", "batch", "turn", "steps", "updates", "seed")
TABLE = Table(
    "inversion_joint",
    KEY,
    "BatchNorm statistics of the whole set, or batch by batch",
    (
        f"`python benchmarks/inversion_joint.py`: {COUNT:,} images for `{NETWORK}`, plan",
        "`every_layer`; `float_inputs` counts those besides image and pooled features. Rows of",
        "one method cost the same image-iterations. Distances: sum over layers of the norms of the",
        "gaps of mean and standard deviation (`l2`), mean of their squares (`mse`), of the whole",
        "set and of batches of the size that was optimised together (mean and spread over the",
        "batches). `class_agreement`, top-1 [%]; `w3a3_distilled`: preset `learned`, `updates` of",
        "128 images.",
    ),
)


@dataclass(frozen=True)
class Cell:
    """One set of images.

    Attributes:
        name: What the row is called.
        method: Registered name; empty: real training images.
        batch_size: Images optimised together.
        statistics: Whose are matched.
        turn: Steps of a batch before it is the next one's turn; only with ``joint``.
        settings: Where they differ from the method's defaults.
    """

    name: str
    method: str
    batch_size: int
    statistics: str
    turn: int = 10
    settings: Mapping[str, Any] = field(default_factory=dict)

    def describe(self) -> str:
        """On one line."""
        return f"{self.name} | {self.statistics} | batch {self.batch_size} | turn {self.turn}"


# DeepInversion's own settings for CIFAR-10.
CIFAR = {**DEEP_INVERSION_ON_CIFAR, "low_resolution_share": 0.0}
# Snapshots of 256 images each, so that there is more than one batch.
HARVEST = {"snapshots": 4}
PAIRS = (
    Cell("hast", "hast", 256, "batch"),
    Cell("intraq", "intraq", 256, "batch"),
    Cell("deep_inversion, CIFAR settings", "deep_inversion", 256, "batch", settings=CIFAR),
    Cell("knowledge_within", "knowledge_within", 256, "batch"),
    Cell("genie_d", "genie_d", 128, "batch"),
    Cell("dffg, 4 snapshots", "dffg", 64, "batch", settings=HARVEST),
    Cell("zeroq", "zeroq", 64, "batch"),
)
SMALL = replace(PAIRS[2], batch_size=64)
CELLS = (
    *(replace(cell, statistics=s) for cell in PAIRS for s in ("batch", "joint")),
    # What ZeroQ does by itself: every image alone.
    replace(PAIRS[-1], statistics="sample"),
    # Smaller batches, and turns of other lengths.
    *(replace(SMALL, statistics=s) for s in ("batch", "joint")),
    *(replace(SMALL, statistics="joint", turn=turn) for turn in (1, 50)),
    Cell("real training images", "", 256, ""),
)


@dataclass(frozen=True)
class Budget:
    """What every row may spend.

    Attributes:
        steps: Per image.
        updates: Of the student that is trained.
        seed: Seed of everything random.
    """

    steps: int
    updates: int
    seed: int


def key_of(cell: Cell, budget: Budget) -> tuple[Any, ...]:
    """What tells a row from all others."""
    turn = cell.turn if cell.statistics == "joint" else None
    steps = budget.steps if cell.method else None
    return (
        cell.name, cell.statistics, cell.batch_size, turn, steps, budget.updates, budget.seed,
    )  # fmt: skip


def settings_of(cell: Cell, budget: Budget) -> dict[str, Any]:
    """All settings of the method; what counts steps is scaled with their number."""
    config = synthesizers.get(cell.method).config(**cell.settings)
    config = with_steps(config, budget.steps, given=cell.settings)
    changes = {"batch_size": cell.batch_size, "statistics": cell.statistics}
    return asdict(replace(config, joint_steps=cell.turn, **changes))


def images_of(cell: Cell, budget: Budget, teacher: Teacher, folder: Path) -> tuple[ImageSet, float]:
    """The images, and the seconds that making them took."""
    if not cell.method:
        return shared.training_images(NETWORK, COUNT), 0.0
    done = folder / "done.json"
    if done.exists():
        seconds = json.loads(done.read_text(encoding="utf-8"))["seconds"]
        return ImageSet.load(folder / "images"), seconds
    monitor = KeepingMonitor(SILENT, folder, print)
    made = emptyset.synthesize(
        teacher, cell.method, COUNT, seed=budget.seed, monitor=monitor, **settings_of(cell, budget)
    )
    seconds = monitor.seconds()
    made.save(folder / "images")
    done.write_text(json.dumps({"seconds": seconds}), encoding="utf-8")
    return made, seconds


@torch.no_grad()
def agreement(images: ImageSet, teacher: Teacher) -> float | None:
    """How often the teacher names the class that an image was made for [%]."""
    if images.targets is None:
        return None
    return top1(teacher.module, images)


def student_top1(
    teacher: Teacher, images: ImageSet, bits: str, budget: Budget, folder: Path, test: ImageSet
) -> float:
    """A student of the images; trained where the budget has updates for it."""
    student = emptyset.prepare(teacher, bits, plan="every_layer")
    emptyset.refine(student, images, "calibrate", seed=budget.seed)
    if bits == "w3a3":
        kept = folder / "training"
        kept.mkdir(exist_ok=True)
        emptyset.refine(
            student, images, "distill", seed=budget.seed, steps=budget.updates,
            monitor=KeepingMonitor(SILENT, kept, print),
        )  # fmt: skip
    return top1(student, test)


def measure(cell: Cell, budget: Budget, test: ImageSet) -> dict[str, Any]:
    """One row."""
    key = key_of(cell, budget)
    name = "-".join("".join(c if c.isalnum() or c in "._" else "_" for c in str(k)) for k in key)
    folder = WORK / f"joint-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    teacher = shared.load(NETWORK)
    images, seconds = images_of(cell, budget, teacher, folder)
    whole = batch_norm_distance(images, teacher, batch_size=COUNT)
    batches = batch_norm_distance(images, teacher, batch_size=cell.batch_size)
    said = agreement(images, teacher)
    iterations = None
    if cell.method:
        entry = synthesizers.get(cell.method)
        made = entry.make(entry.config(**settings_of(cell, budget)))
        iterations = image_iterations(made, teacher, COUNT)
    row = dict(zip(KEY, key, strict=True)) | {
        "image_iterations": iterations,
        "whole_l2": round(whole.sum_l2, 3), "whole_mse": round(whole.mean_mse, 5),
        "batches_l2": round(batches.sum_l2, 3),
        "batches_l2_spread": _rounded(batches.sum_l2_spread, 3),
        "batches_mse": round(batches.mean_mse, 5),
        "class_agreement": _rounded(said, 1),
        "seconds": round(seconds),
        "float_inputs": len(emptyset.prepare(teacher, "w4a4", plan="every_layer").float_inputs),
        "float_top1": round(top1(teacher.module, test), 2),
        "w4a4_calibrated": round(student_top1(teacher, images, "w4a4", budget, folder, test), 2),
        "w3a3_distilled": round(student_top1(teacher, images, "w3a3", budget, folder, test), 2),
    }  # fmt: skip
    shutil.rmtree(folder)
    return row


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def main() -> None:
    """Measure the rows that are missing, in the order of the cells."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cells whose description holds this text")
    parser.add_argument("--steps", type=int, default=250, help="steps of every image")
    parser.add_argument("--updates", type=int, default=300, help="updates of the w3a3 student")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=int, help="test images; to try the script, writes no table")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    budget = Budget(options.steps, options.updates, options.seed)
    test = None if options.list else shared.labelled_images(NETWORK, options.limit)
    for cell in CELLS:
        if options.only not in cell.describe():
            continue
        print(cell.describe(), flush=True)
        known = TABLE.has(dict(zip(KEY, key_of(cell, budget), strict=True)))
        if test is None or known:
            continue
        row = measure(cell, budget, test)
        print(row, flush=True)
        if options.limit is None:
            TABLE.write(row)


if __name__ == "__main__":
    main()
