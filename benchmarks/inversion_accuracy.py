"""Points lost by students of different images: DFFG, its ablations, its family, real images.

    python benchmarks/inversion_accuracy.py --list
    python benchmarks/inversion_accuracy.py [--table accuracy] [--only TEXT] [--threads 2]
    python benchmarks/inversion_accuracy.py --table dffg_ablation --clip MODEL

Every row is one student: network, images, bits, recipe, seed. Top-1 [%] of all test images in the
last epoch comes first; the best of the measured epochs stands beside it and is chosen by nothing.
Images and trainings are kept in `runs/benchmarks/`, so a killed run goes on where it was; rows that
the table already has are not measured again. With `--clip` no student is trained: rows that are
there get the similarity of their kept images in CLIP's embeddings. MODEL is a name on the hub, for
example `openai/clip-vit-base-patch32`, or a folder. Needs `../shared`.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import inversion_cells as cells
import shared_networks as shared
import torch
from kept_rows import Table, claimed
from torch import Tensor

import emptyset
from emptyset.cli.freed_memory import keep_freed_memory
from emptyset.errors import CollapseError
from emptyset.evaluate.clip_similarity import ClipEncoder, clip_similarity
from emptyset.evaluate.image_quality import image_quality
from emptyset.graph.student import Student
from emptyset.images.image_set import ImageSet
from emptyset.inversion.budget import image_iterations
from emptyset.kept_states import KeepingMonitor
from emptyset.monitor import SILENT, State
from emptyset.refiners.distill import Distill, DistillConfig
from emptyset.registry import synthesizers
from emptyset.teachers.teacher import Teacher

WORK = Path(__file__).parent.parent / "runs" / "benchmarks"
EPOCHS = 3
SHORT = 100  # updates up to which only the last state is measured
BATCH = 256  # images of a batch in which quality is measured
KEY = ("network", "images", "bits", "recipe", "seed")


@dataclass
class Watching:
    """Measures the student after every third of its training, and passes states on to disk."""

    inner: KeepingMonitor
    measure: Callable[[], float] | None = None
    seen: dict[str, float] = field(default_factory=dict)
    history: Path | None = None

    def advance(self, what: str, done: int, total: int, detail: str = "") -> None:
        """Measure where an epoch ends; the last is measured after training."""
        every = max(1, total // EPOCHS) if total > SHORT else total
        if what == "distill" and self.measure and done % every == 0 and done + every <= total:
            self.seen[str(done)] = self.measure()
            if self.history:  # at once: training goes on from its own states after a kill
                self.history.write_text(json.dumps(self.seen), encoding="utf-8")

    def note(self, message: str) -> None:
        """Show it."""
        print(message, flush=True)

    def keep(self, key: str, state: Callable[[], State], *, final: bool = False) -> None:
        """Write it."""
        self.inner.keep(key, state, final=final)

    def restore(self, key: str) -> State | None:
        """Read it."""
        return self.inner.restore(key)


def folder_of(*parts: object) -> Path:
    """Where one piece of work keeps what it has."""
    name = "-".join("".join(c if c.isalnum() or c in "._" else "_" for c in str(p)) for p in parts)
    folder = WORK / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def images_of(
    network: str, teacher: Teacher, name: str, seed: int
) -> tuple[ImageSet, dict[str, Any]]:
    """The images, what can be said of them, and the seconds that making them took."""
    folder = folder_of(network, name, seed)
    known = folder / "done.json"
    if name.startswith("real"):
        made = shared.training_images(network, int(name.removeprefix("real ")))
        if known.exists():
            return made, json.loads(known.read_text(encoding="utf-8"))
        seconds = 0.0
    elif known.exists():
        return ImageSet.load(folder / "images"), json.loads(known.read_text(encoding="utf-8"))
    else:
        recipe = cells.IMAGES[name]
        start = time.perf_counter()
        monitor = KeepingMonitor(SILENT, folder, print)
        made = emptyset.synthesize(
            teacher, recipe.method, recipe.count, seed=seed, monitor=monitor, **recipe.settings
        )
        seconds = time.perf_counter() - start
        made.save(folder / "images")
    quality = image_quality(made, teacher, batch_size=min(BATCH, len(made)))
    said = {
        "seconds_images": round(seconds),
        "bn_distance": round(quality.distance.sum_l2, 2) if quality.distance else None,
        "similarity": round(quality.diversity.similarity, 3),
        "similarity_in_class": round(quality.diversity.similarity_within_class or 0.0, 3),
        "class_agreement": round(quality.diversity.class_agreement or 0.0, 3),
    }
    known.write_text(json.dumps(said), encoding="utf-8")
    for path in folder.glob("*.safetensors"):
        path.unlink()
    return made, said


@torch.no_grad()
def top1(predict: Callable[[Tensor], Tensor], test: ImageSet) -> float:
    """Share of right answers of a network on ``shared.DEVICE`` [%]."""
    assert test.targets is not None
    pairs = zip(test.images.split(500), test.targets.split(500), strict=True)
    right = sum(int((predict(x.to(shared.DEVICE)).argmax(1).cpu() == y).sum()) for x, y in pairs)
    return 100 * right / len(test)


def measure(cell: cells.Cell) -> dict[str, Any]:
    """One row."""
    teacher = shared.load(cell.network)
    test = shared.labelled_images(cell.network)
    images, said = images_of(cell.network, teacher, cell.images, cell.seed)
    recipe = cells.RECIPES[cell.recipe]
    strict = cell.network in cells.STRICT and cell.plan == "every_layer"
    student = emptyset.prepare(
        teacher, cell.bits, plan=cell.plan, batch_norm=recipe.batch_norm,
        **({"strict": True} if strict else {}),
    )  # fmt: skip
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(cell.seed))
    emptyset.refine(student, ImageSet(images.images[order[:1024]]), seed=cell.seed)
    before = top1(student, test)
    folder = folder_of(*(getattr(cell, name) for name in KEY))
    config = DistillConfig(**recipe.settings(cell.bits))
    seconds, seen = watched_training(config, student, images, cell.seed, test, folder)
    return row_of(cell, teacher, student, images, test, before, seen) | {
        "seconds_training": round(seconds), **said,
    }  # fmt: skip


def watched_training(
    config: DistillConfig, student: Student, shown: Any, seed: int, test: ImageSet, folder: Path,
    *, looks: bool = True,
) -> tuple[float, dict[str, float]]:  # fmt: skip
    """Train a student; what was measured on the way is kept, so a killed run goes on with it.

    Args:
        config: Of the training.
        student: Prepared.
        shown: Images or source.
        seed: Of the training.
        test: To measure on.
        folder: Keeps states and measurements.
        looks: Measure after every third too.

    Returns:
        Its seconds, of all runs that it took, and top-1 [%] by updates made.
    """
    history = folder / "epochs.json"
    keeping = KeepingMonitor(SILENT, folder, print)
    monitor = Watching(
        keeping,
        (lambda: top1(student, test)) if looks else None,
        history=history,
    )
    if history.exists():
        monitor.seen = json.loads(history.read_text(encoding="utf-8"))
    Distill(config).refine(student, shown, seed=seed, monitor=monitor)
    return keeping.seconds(), monitor.seen


def row_of(
    cell: cells.Cell, teacher: Teacher, student: Student, images: ImageSet, test: ImageSet,
    before: float, seen: dict[str, float],
) -> dict[str, Any]:  # fmt: skip
    """What a finished student is worth."""
    float_top1 = float_top1_of(teacher, cell.network, test)
    last = top1(student, test)
    best = max([last, *seen.values()])
    config = DistillConfig(**cells.RECIPES[cell.recipe].settings(cell.bits)).course(student.bits)
    strict = cell.network in cells.STRICT and cell.plan == "every_layer"
    return {
        "network": cell.network, "images": cell.images, "bits": cell.bits,
        "recipe": cell.recipe, "seed": cell.seed,
        "protocol": cell.plan + (", strict" if strict else ""),
        "float_inputs": len(student.float_inputs), "float_top1": round(float_top1, 2),
        "last": round(last, 2), "lost": round(float_top1 - last, 2), "best": round(best, 2),
        "calibrated_only": round(before, 2), "updates": config.steps,
        "batch": config.batch_size, "images_count": len(images),
        "image_iterations": _iterations_of(cell.images, teacher),
    }  # fmt: skip


def _iterations_of(name: str, teacher: Teacher) -> int | None:
    """Image-iterations that a set of images cost; None of real ones."""
    if name.startswith("real"):
        return None
    recipe = cells.IMAGES[name]
    entry = synthesizers.get(recipe.method)
    made = entry.make(entry.config(**recipe.settings))
    return image_iterations(made, teacher, recipe.count)


def float_top1_of(teacher: Teacher, network: str, test: ImageSet) -> float:
    """Measured once."""
    path = folder_of(network) / "float_top1"
    if not path.exists():
        path.write_text(repr(top1(teacher.module, test)), encoding="utf-8")
    return float(path.read_text(encoding="utf-8"))


def table_of(name: str) -> Table:
    """A committed table."""
    return Table(f"inversion_{name}", KEY, cells.TITLES[name], cells.ABOUT[name])


def add_clip_similarity(table: Table, model: str, only: str) -> None:
    """Rows whose images are kept get two more columns.

    Args:
        table: To write to.
        model: CLIP's name on the hub, or its folder.
        only: Rows whose images have this text in their name.
    """
    encoder = ClipEncoder.load(model, device=shared.DEVICE)
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in table.rows():
        key = (row["network"], row["images"], row["seed"])
        kept = (folder_of(*key) / "done.json").exists() or row["images"].startswith("real")
        if only not in row["images"] or not kept:
            continue
        if key not in found:
            teacher = shared.load(row["network"])
            images, _ = images_of(row["network"], teacher, row["images"], row["seed"])
            seen = clip_similarity(images, teacher.input, encoder)
            found[key] = {
                "clip": seen.model,
                "clip_similarity": round(seen.similarity, 3),
                "clip_similarity_in_class": round(seen.similarity_within_class or 0.0, 3),
            }
            print(key, found[key], flush=True)
        table.write(row | found[key])


def main() -> None:
    """Measure the rows that are missing, in the order of the table's cells."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", default="accuracy", choices=list(cells.TABLES))
    parser.add_argument("--only", default="", help="cells whose description holds this text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--clip", metavar="MODEL", help="only CLIP's similarity of kept images")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    # As the command line does.
    keep_freed_memory()
    torch.set_flush_denormal(True)
    table = table_of(options.table)
    if options.clip is not None:
        add_clip_similarity(table, options.clip, options.only)
        return
    for cell in cells.TABLES[options.table]:
        if options.only not in cell.describe() or table.has(vars(cell)):
            continue
        print(cell.describe(), flush=True)
        if options.list or not claimed(folder_of(*(getattr(cell, name) for name in KEY))):
            continue
        try:
            row = measure(cell)
        except CollapseError as fault:
            print(fault, flush=True)
            row = {name: getattr(cell, name) for name in KEY} | {"last": "diverged"}
        print(row, flush=True)
        table.write(row)


if __name__ == "__main__":
    main()
