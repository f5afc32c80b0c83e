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
from dataclasses import replace
from pathlib import Path
from typing import Any

import qimera_cells as cells
import shared_networks as shared
import torch
from inversion_accuracy import float_top1_of, folder_of, images_of, top1, watched_training
from kept_rows import RESULTS, Row, Table, claimed
from qimera_published import grid_summary, published

import emptyset
from emptyset import generation
from emptyset.cli.freed_memory import keep_freed_memory
from emptyset.errors import CollapseError
from emptyset.evaluate.class_boundary import class_boundary
from emptyset.generators.generator_file import save_generator
from emptyset.graph.student import Student
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
    ours = cell.recipe not in (*cells.LESSONS, cells.CALIBRATED)
    student = emptyset.prepare(
        teacher, cell.bits, plan="every_layer", batch_norm="fold" if ours else "frozen", **strict
    )
    float_top1 = float_top1_of(teacher, cell.network, test)
    row = {
        **{name: getattr(cell, name) for name in KEY},
        "protocol": "every_layer" + (", strict" if strict else ""),
        "float_inputs": len(student.float_inputs), "float_top1": round(float_top1, 2),
    }  # fmt: skip
    if cell.recipe == cells.CALIBRATED:
        extremes = {"weight_range": "min_max", "activation_range": "min_max"}
        emptyset.refine(student, _stored(cell.source, cell, teacher), **extremes)
        return row | _worth(float_top1, top1(student, test))
    folder = training_folder(cell)
    shown: Any
    source: Any = None
    beside: Row = {}
    if before := cell.trained_before:
        kept = training_folder(before) / "generator.safetensors"
        shown = source = generation.generator_from(kept, teacher)
    elif about.method:
        shown = source = generation.source(
            teacher, about.method, seed=cell.seed, **cell.source_settings()
        )
    else:
        shown = _stored(cell.source, cell, teacher)
    if cell.recipe_as_usual in cells.INITIALISED or (ours and source is None):
        images = shown if source is None else _stored("harvested spectrum 1024", cell, teacher)
        _fit(student, images.subset(torch.arange(1024)), cell)
    if cell.recipe_as_usual in cells.INITIALISED:
        row["reconstructed"] = round(top1(student, test), 2)
    if cell.source in cells.BESIDE:
        shown, beside = _with_real(cell, teacher, source)
    config = DistillConfig(**cell.distill_settings())
    row |= {"lessons": config.steps, "batch": config.batch_size, **beside}
    try:
        seconds, seen = watched_training(
            config, student, shown, cell.seed, test, folder, looks=cell.looked_at
        )
    except CollapseError as fault:
        print(fault, flush=True)
        return row | {"last": "diverged"}
    row |= _worth(float_top1, top1(student, test), *seen.values()) | {"seconds": round(seconds)}
    if source is None:
        return row
    save_generator(source, folder / "generator.safetensors")
    return row | (_between_classes(source, teacher) if cell.source in cells.BETWEEN_CLASSES else {})


def training_folder(cell: cells.Cell) -> Path:
    """Where the training of a row keeps its states and its generator."""
    return folder_of("qimera", *(getattr(cell, name) for name in KEY))


def _fit(student: Student, images: ImageSet, cell: cells.Cell) -> None:
    """Ranges, and for the short training blocks too."""
    emptyset.refine(student, images, seed=cell.seed)
    if cell.recipe_as_usual in cells.INITIALISED:
        emptyset.refine(student, images, "genie", seed=cell.seed, steps=1000, patience=5)


def _worth(float_top1: float, last: float, *seen: float) -> Row:
    worth: Row = {"last": round(last, 2), "lost": round(float_top1 - last, 2)}
    return worth | ({"best": round(max(last, *seen), 2)} if seen else {})


def _stored(name: str, cell: cells.Cell, teacher: Teacher) -> ImageSet:
    """Real training images, or those of the inversion tables."""
    if name.startswith("real 5120"):
        return shared.training_images(cell.network, REAL)
    return images_of(cell.network, teacher, name, cell.seed)[0]


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


def _between_classes(source: Any, teacher: Teacher) -> Row:
    """What lies between its classes."""
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
    table = table_of(options.table)
    for cell in cells.TABLES[options.table]:
        if options.only not in cell.describe() or table.has(vars(cell)):
            continue
        print(cell.describe(), flush=True)
        if options.list or not claimed(training_folder(cell)):
            continue
        row = _in_another_table(cell, options.table) or measure(cell)
        print(row, flush=True)
        write(options.table, row)


def table_of(name: str) -> Table:
    """One of the tables, with what its rows come to."""
    about = list(cells.ABOUT[name])
    table = Table(f"qimera_{name}", KEY, cells.TITLES[name], about)
    if name != "grid":
        return table
    return replace(table, about=[*about, "", *grid_summary(table.rows())])


def write(name: str, row: Row) -> None:
    """Keep a row, what the paper reports beside it."""
    # Recipes of ours are not the paper's.
    if row["recipe"] in (*cells.LESSONS, cells.CALIBRATED):
        row = row | published(row["network"], row["source"], row["bits"])
    table_of(name).write(row)
    # The summary counts the new row too.
    table_of(name).write()


def _in_another_table(cell: cells.Cell, own: str) -> Row | None:
    """The same row where another table has it already."""
    for name in cells.TABLES:
        path = RESULTS / f"qimera_{name}.json"
        if name == own or not path.is_file():
            continue
        for row in json.loads(path.read_text(encoding="utf-8")):
            if all(row[key] == getattr(cell, key) for key in KEY):
                return dict(row)
    if cell.recipe == cells.OURS and not cells.SOURCES[cell.source].method:
        return _of_inversion(cell)
    return None


def _of_inversion(cell: cells.Cell) -> Row | None:
    """The same training on stored images, from the inversion tables."""
    path, steps = RESULTS / "inversion_accuracy.json", cell.distill_settings()["steps"]
    for row in json.loads(path.read_text(encoding="utf-8")):
        told = tuple(row[name] for name in ("network", "images", "bits", "recipe", "seed"))
        if told == (cell.network, cell.source, cell.bits, "learned", cell.seed):
            if row["updates"] != steps:
                continue
            same = ("protocol", "float_inputs", "float_top1", "last", "lost", "best", "batch")
            key = {name: getattr(cell, name) for name in KEY}
            return key | {name: row[name] for name in same} | {"lessons": steps}
    return None


if __name__ == "__main__":
    main()
