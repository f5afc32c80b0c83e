"""Top-1 without any image: each data-free correction, alone and together.

    python benchmarks/reconstruction_no_images.py [--networks a,b] [--bits w8a8,w4a8] [--rows x,y]
                                                  [--limit 2000]

Protocol: plan `integer`, simulated (the certificate shows that the file computes the same), seed 0;
every network's float top-1 on the same test images stands beside. The real-image row calibrates on
256 real images of the training set, ImageNet networks on `imagenet_1shot`, digits on their training
scans. Rows already in the table are replaced by a new measurement of the same settings, others are
kept; a killed run goes on with `--missing`.

Writes `results/reconstruction_no_images.md` and `.json`.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import shared_networks as shared

import emptyset
from emptyset.evaluate.accuracy import accuracy
from emptyset.images.image_set import ImageSet
from emptyset.measurement import predictor
from emptyset.teachers.embedded import held_out_images_path, train_images_path
from emptyset.teachers.teacher import Teacher

RESULTS = Path(__file__).parent / "results"
NAME = "reconstruction_no_images"
MOBILENET = "embedded:digits-mobilenet"
REAL_IMAGES = 256
# No BatchNorm: nothing to go by.
WITHOUT_BATCH_NORM = ("cifar10_vit_prenorm_sachinxmpl",)
NETWORKS = (
    MOBILENET,
    "embedded:digits-resnet",
    *(name for name in shared.NETWORKS if name not in WITHOUT_BATCH_NORM),
)

Step = tuple[str, dict[str, Any]]
WEIGHTS: Step = ("equalize", {"balance": "weights"})
ACTIVATIONS: Step = ("equalize", {"balance": "activations"})
ABSORB: Step = ("bias_absorption", {})
ABSORB_PADDED: Step = ("bias_absorption", {"padded": True})
SPLIT: Step = ("outlier_channel_splitting", {})
CORRECT: Step = ("bias_correction", {})
CORRECT_NORMS: Step = ("bias_correction", {"weight_norms": True})


def told(deviations: float = 6.0, activation_range: str = "auto") -> Step:
    """Calibration on what BatchNorm tells."""
    settings: dict[str, Any] = {"activation_values": "batch_norm", "deviations": deviations}
    return "calibrate", settings | {"activation_range": activation_range}


# The rows of the table; those with images stand for comparison.
ROWS: dict[str, tuple[Step, ...]] = {
    "ranges": (told(),),
    "ranges, 4 deviations": (told(4.0),),
    "ranges, 8 deviations": (told(8.0),),
    "ranges, 10 deviations": (told(10.0),),
    "ranges, min_max": (told(activation_range="min_max"),),
    "ranges, analytic_clip": (told(activation_range="analytic_clip"),),
    "ranges + correction": (told(), CORRECT),
    "ranges, 8 deviations + correction": (told(8.0), CORRECT),
    "ranges, analytic_clip + correction": (told(activation_range="analytic_clip"), CORRECT),
    "ranges + correction with norms": (told(), CORRECT_NORMS),
    "equalized weights + ranges": (WEIGHTS, told()),
    "equalized weights + ranges + correction": (WEIGHTS, told(), CORRECT),
    "equalized activations + ranges": (ACTIVATIONS, told()),
    "equalized activations + ranges + correction": (ACTIVATIONS, told(), CORRECT),
    "equalized weights + absorption + ranges + correction": (WEIGHTS, ABSORB, told(), CORRECT),
    "equalized weights + absorption (padded) + ranges + correction": (
        WEIGHTS, ABSORB_PADDED, told(), CORRECT,
    ),
    "splitting + ranges + correction": (SPLIT, told(), CORRECT),
    "equalized activations + splitting + ranges + correction": (
        ACTIVATIONS, SPLIT, told(), CORRECT,
    ),
}  # fmt: skip
REAL: Step = ("calibrate", {})
EMPIRICAL: Step = ("bias_correction", {"statistics": "empirical"})
REESTIMATE: Step = ("batch_norm_reestimation", {})
WITH_IMAGES: dict[str, tuple[Step, ...]] = {
    "real images": (REAL,),
    "real images + empirical correction": (REAL, EMPIRICAL),
    "real images + re-estimation": (REAL, REESTIMATE),
    "real images, equalized weights": (WEIGHTS, REAL),
    "real images, equalized activations": (ACTIVATIONS, REAL),
    "real images, equalized activations + empirical correction": (ACTIVATIONS, REAL, EMPIRICAL),
}
EVERYTHING = ROWS | WITH_IMAGES


def inputs(name: str, limit: int | None) -> tuple[Teacher, Any, Callable[[], ImageSet]]:
    """Teacher, test images, and a function that gives real images to calibrate with."""
    if name.startswith("embedded:"):
        teacher = emptyset.load(name)
        test = emptyset.pipeline.images_from(held_out_images_path(), teacher, limit=limit)
        real = emptyset.pipeline.images_from(train_images_path(), teacher)
        return teacher, test, lambda: real.image_set(REAL_IMAGES)
    teacher, test = shared.load(name), shared.labelled_images(name, limit)
    if name.startswith("imagenet"):
        return teacher, test, lambda: one_shot_images(name)
    return teacher, test, lambda: shared.training_images(name, REAL_IMAGES)


def one_shot_images(name: str) -> ImageSet:
    """Real ImageNet images that are not in the test set."""
    about = replace(shared.NETWORKS[name], data="imagenet_1shot")
    return shared._normalised(about, *shared._photos(about, REAL_IMAGES))


def measure(
    name: str, bits: str, row: str, teacher: Teacher, test: Any, real: ImageSet | None
) -> dict[str, Any]:
    """One line of the table."""
    student = emptyset.prepare(teacher, bits)
    start = time.perf_counter()
    for method, settings in EVERYTHING[row]:
        emptyset.refine(student, real, method, **settings)
    seconds = time.perf_counter() - start
    found = accuracy(predictor(student), test).top1
    return {
        "network": name, "bits": bits, "row": row, "test_images": len(test),
        "top1": round(100 * found, 2), "seconds": round(seconds, 2),
    }  # fmt: skip


def load_rows() -> list[dict[str, Any]]:
    """What was measured before."""
    path = RESULTS / f"{NAME}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def write(rows: list[dict[str, Any]]) -> None:
    """The committed table: one line per network and row, one column per bits."""
    RESULTS.mkdir(exist_ok=True)
    kept = {tuple(r[k] for k in ("network", "bits", "row")): r for r in [*load_rows(), *rows]}
    text = json.dumps(list(kept.values()), indent=1) + "\n"
    (RESULTS / f"{NAME}.json").write_text(text, encoding="utf-8")
    widths = sorted({bits for _, bits, _ in kept}, reverse=True)
    lines = [
        "# Without any image", "",
        "`python benchmarks/reconstruction_no_images.py`: plan `integer`, seed 0; top-1 [%] of the",
        "simulated student, the float network's and the number of test images beside the name;",
        "seconds of all corrections together at the first bits. The last rows use 256 real images.",
        "",
    ]  # fmt: skip
    for network in dict.fromkeys(name for name, _, _ in kept):
        mine = {(bits, row): r for (name, bits, row), r in kept.items() if name == network}
        some = next(iter(mine.values()))
        lines += [
            f"## {network}", "",
            f"float {some['float_top1']:.2f}, {some['test_images']:,} test images", "",
            f"| row | {' | '.join(widths)} | seconds |", f"|---|{'---|' * (len(widths) + 1)}",
        ]  # fmt: skip
        for row in EVERYTHING:
            cells = [mine.get((bits, row)) for bits in widths]
            if not any(cells):
                continue
            shown = [f"{cell['top1']:.2f}" if cell else "" for cell in cells]
            seconds = next(cell["seconds"] for cell in cells if cell)
            lines.append(f"| {row} | {' | '.join(shown)} | {seconds} |")
        lines.append("")
    (RESULTS / f"{NAME}.md").write_text("\n".join(lines), encoding="utf-8")


def default_bits(name: str) -> tuple[str, ...]:
    """What the table shows of a network where nothing else is asked for."""
    return ("w8a8", "w4a8", "w4a4") if name == MOBILENET else ("w8a8", "w4a8")


def main() -> None:
    """Measure and write, row by row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--bits", help="w8a8,w4a8; for digits-mobilenet also w4a4")
    parser.add_argument("--rows", help="names of rows with ';' between them; all by default")
    parser.add_argument("--limit", type=int, help="at most this many test images")
    parser.add_argument("--missing", action="store_true", help="only what the table lacks")
    options = parser.parse_args()
    rows = options.rows.split(";") if options.rows else list(EVERYTHING)
    for name in options.networks.split(","):
        before = {(r["bits"], r["row"]) for r in load_rows() if r["network"] == name}
        wanted = [
            (bits, row)
            for bits in (options.bits.split(",") if options.bits else default_bits(name))
            for row in rows
            if not (options.missing and (bits, row) in before)
        ]
        if not wanted:
            continue
        teacher, test, real_images = inputs(name, options.limit)
        float_top1 = round(100 * accuracy(predictor(teacher), test).top1, 2)
        real = real_images() if any(row in WITH_IMAGES for _, row in wanted) else None
        for bits, row in wanted:
            used = real if row in WITH_IMAGES else None
            found = measure(name, bits, row, teacher, test, used)
            print(found, flush=True)
            write([found | {"float_top1": float_top1}])


if __name__ == "__main__":
    main()
