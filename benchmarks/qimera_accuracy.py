"""Points lost by students that are trained beside generators; real images in the same recipe.

    python benchmarks/qimera_accuracy.py --list
    python benchmarks/qimera_accuracy.py [--table accuracy] [--only TEXT] [--threads 2]

Every row is one student: network, source, bits, recipe, seed. Training is kept in
`runs/benchmarks/`, so a killed run goes on where it was; rows that the table already has are not
measured again. Trained generators are kept there too; how many images of every class were
confusing, and their thresholds, stand in `results/qimera_confusing_classes_*.json`. Needs
`../shared`.
"""

import argparse
import json
from typing import Any

import qimera_cells as cells
import shared_networks as shared
import torch
from inversion_accuracy import float_top1_of, folder_of, images_of, top1, watched_training
from kept_rows import RESULTS, Row, Table, claimed

import emptyset
from emptyset import generation
from emptyset.cli.freed_memory import keep_freed_memory
from emptyset.errors import CollapseError
from emptyset.evaluate.class_boundary import class_boundary
from emptyset.generators.generator_file import save_generator
from emptyset.images.image_set import ImageSet
from emptyset.refiners.distill import DistillConfig
from emptyset.teachers.teacher import Teacher

KEY = ("network", "source", "bits", "recipe", "seed")
REAL = 5120
# All that are here.
TRAINING_IMAGES = 16_000


def measure(cell: cells.Cell) -> Row:
    """One row."""
    teacher = shared.load(cell.network)
    test = shared.labelled_images(cell.network)
    about = cells.SOURCES[cell.source]
    strict = {"strict": True} if cell.network in cells.STRICT else {}
    ours = cell.recipe not in cells.LESSONS
    student = emptyset.prepare(
        teacher, cell.bits, plan="every_layer", batch_norm="fold" if ours else "frozen", **strict
    )
    folder = folder_of("qimera", *(getattr(cell, name) for name in KEY))
    source = images = None if about.method else _stored(cell, teacher)
    beside: Row = {}
    if about.method:
        source = generation.source(teacher, about.method, seed=cell.seed, **cell.source_settings())  # type: ignore[assignment]
    elif ours:
        first = images.subset(torch.arange(1024))  # type: ignore[union-attr]
        emptyset.refine(student, first, seed=cell.seed)
        if cell.recipe == cells.TENTH:
            emptyset.refine(student, first, "genie", seed=cell.seed, steps=1000, patience=5)
    shown: Any = source
    if cell.source in cells.BESIDE:
        shown, beside = _with_real(cell, teacher, source)
    config = DistillConfig(**cell.distill_settings())
    seconds, seen = watched_training(config, student, shown, cell.seed, test, folder)
    float_top1, last = float_top1_of(teacher, cell.network, test), top1(student, test)
    row = {
        **{name: getattr(cell, name) for name in KEY},
        "protocol": "every_layer" + (", strict" if strict else ""),
        "float_inputs": len(student.float_inputs), "float_top1": round(float_top1, 2),
        "last": round(last, 2), "lost": round(float_top1 - last, 2),
        "best": round(max([last, *seen.values()]), 2),
        "lessons": cell.distill_settings()["steps"], "batch": config.batch_size,
        "seconds": round(seconds), **beside,
    }  # fmt: skip
    return row | (_between_classes(source, teacher, folder) if about.method else {})


def _stored(cell: cells.Cell, teacher: Teacher) -> ImageSet:
    """Real training images, or those of the inversion tables."""
    if cell.source == "real 5120":
        return shared.training_images(cell.network, REAL)
    return images_of(cell.network, teacher, cell.source, cell.seed)[0]


def _with_real(cell: cells.Cell, teacher: Teacher, source: Any) -> tuple[Any, Row]:
    """The source with real images in its batches, and what is to be told of them."""
    chosen = cells.BESIDE[cell.source]
    real = shared.training_images(cell.network, TRAINING_IMAGES)
    shown = generation.with_real_images(source, real, teacher, seed=cell.seed, **chosen)
    if chosen["choose"] == "confusing":
        classes = shown.about["classes"]
        name = "".join(c if c.isalnum() else "_" for c in cell.source)
        path = RESULTS / f"qimera_confusing_classes_{name}.json"
        path.write_text(json.dumps(classes, indent=1) + "\n", encoding="utf-8")
    return shown, {"beside": shown.about["real_images_beside"]}


def _between_classes(source: Any, teacher: Teacher, folder: Any) -> Row:
    """Keeps the generator; with labels, what lies between its classes."""
    save_generator(source, folder / "generator.safetensors")
    if not source.method.labelled:
        return {}
    found = class_boundary(source, teacher)
    return {
        "ratio": round(found.superposed.ratio, 3),
        "intrusion": round(found.superposed.intrusion, 5),
        "mixup_ratio": round(found.mixup.ratio, 3),
        "mixup_intrusion": round(found.mixup.intrusion, 5),
    }


def main() -> None:
    """Measure the rows that are missing, in the order of the table's cells."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", default="accuracy", choices=list(cells.TABLES))
    parser.add_argument("--only", default="", help="cells whose description holds this text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    # As the command line does.
    keep_freed_memory()
    torch.set_flush_denormal(True)
    table = Table(
        f"qimera_{options.table}", KEY, cells.TITLES[options.table], cells.ABOUT[options.table]
    )
    for cell in cells.TABLES[options.table]:
        if options.only not in cell.describe() or table.has(vars(cell)):
            continue
        print(cell.describe(), flush=True)
        if options.list or not claimed(folder_of("qimera", *(getattr(cell, name) for name in KEY))):
            continue
        try:
            row = _in_another_table(cell, options.table) or measure(cell)
        except CollapseError as fault:
            print(fault, flush=True)
            row = {name: getattr(cell, name) for name in KEY} | {"last": "diverged"}
        print(row, flush=True)
        table.write(row)


def _in_another_table(cell: cells.Cell, own: str) -> Row | None:
    """The same row where another table has it already."""
    for name in cells.TABLES:
        path = RESULTS / f"qimera_{name}.json"
        if name == own or not path.is_file():
            continue
        for row in json.loads(path.read_text(encoding="utf-8")):
            if all(row[key] == getattr(cell, key) for key in KEY):
                return dict(row)
    return None


if __name__ == "__main__":
    main()
