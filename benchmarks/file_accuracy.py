"""Top-1 of the exported file in ONNX Runtime, from images made without data.

    python benchmarks/file_accuracy.py [--networks a,b] [--bits w8a8] [--images zeroq]

Protocol: plan `integer`, refiner `calibrate`, seed 0, 1,024 images of 25 steps. Each network's own
float top-1 stands beside; the same recipe on 1,024 real training images too. The ViT has no
BatchNorm: only real images. Writes `results/file_accuracy.md` and `.json`; rows already there are
kept.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import shared_networks as shared

import emptyset
from emptyset.evaluate.accuracy import accuracy
from emptyset.evaluate.runtime import OnnxClassifier
from emptyset.images.image_set import ImageSet
from emptyset.measurement import predictor
from emptyset.recipe_by_bits import practical_recipe
from emptyset.teachers.embedded import held_out_images_path, train_images_path
from emptyset.teachers.teacher import Teacher

RESULTS = Path(__file__).parent / "results"
EMBEDDED = ("embedded:digits-resnet", "embedded:digits-mobilenet")
STEPS = 25
CIFAR = tuple(name for name in shared.NETWORKS if name.startswith("cifar"))


def inputs(name: str) -> tuple[Teacher, Any, Any]:
    """Teacher, test images and a function that gives real training images."""
    if name.startswith("embedded:"):
        teacher = emptyset.load(name)
        held_out = emptyset.pipeline.images_from(held_out_images_path(), teacher)
        real = emptyset.pipeline.images_from(train_images_path(), teacher)
        return teacher, held_out, lambda count: real.image_set(count)
    teacher = shared.load(name)
    return teacher, shared.labelled_images(name), lambda count: shared.training_images(name, count)


def default_settings() -> dict[str, Any]:
    """Settings of the default recipe's images, of 25 steps as when the table was begun."""
    section = practical_recipe("w8a8").synthesize
    own = {key: value for key, value in section.items() if key not in ("method", "count")}
    return {**own, "steps": STEPS}


def measure(name: str, bits: str, images: str, count: int, folder: Path) -> dict[str, Any]:
    """One row: from teacher to file, then the file on the test images."""
    teacher, test, real = inputs(name)
    start = time.perf_counter()
    made: ImageSet = (
        real(count)
        if images == "real"
        else emptyset.synthesize(teacher, images, count, seed=0, **default_settings())
    )
    after_images = time.perf_counter()
    student = emptyset.prepare(teacher, bits)
    emptyset.refine(student, made)
    path = folder / "model.onnx"
    artefact = emptyset.export(student, path, float_path=folder / "float.onnx")
    certificate = emptyset.certify(path, student, made, simulation=artefact.simulation)
    seconds = time.perf_counter() - start
    before = accuracy(predictor(teacher), test).top1
    after = accuracy(OnnxClassifier(path), test).top1
    row = {
        "network": name, "bits": bits, "images": images, "count": len(made), "seed": 0,
        "float_top1": round(100 * before, 2), "file_top1": round(100 * after, 2),
        "lost": round(100 * (before - after), 2), "test_images": len(test),
        "certificate": certificate.holds, "ties": certificate.ties, "codes": certificate.values,
        "integer_share": round(artefact.integer_share, 3),
        "size_ratio": round(artefact.size_bytes / (artefact.float_size_bytes or 1), 3),
        "seconds_images": round(after_images - start, 1), "seconds_in_all": round(seconds, 1),
    }  # fmt: skip
    print(row, flush=True)
    return row


def write(rows: list[dict[str, Any]]) -> None:
    """The committed table, older rows of other settings kept."""
    path = RESULTS / "file_accuracy.json"
    key = ("network", "bits", "images", "count")
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    kept = {tuple(r[k] for k in key): r for r in [*old, *rows]}
    path.write_text(json.dumps(list(kept.values()), indent=1) + "\n", encoding="utf-8")
    columns = list(next(iter(kept.values())))
    lines = [
        "# Accuracy of exported files", "",
        "`python benchmarks/file_accuracy.py`: plan `integer`, refiner `calibrate`, seed 0; top-1",
        "[%] of the file in ONNX Runtime; seconds on 2 cores, from teacher to certified file.", "",
        f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}",
    ]  # fmt: skip
    lines += [f"| {' | '.join(str(row[c]) for c in columns)} |" for row in kept.values()]
    (RESULTS / "file_accuracy.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", default=",".join([*EMBEDDED, *CIFAR]))
    parser.add_argument("--bits", default="w8a8")
    parser.add_argument("--images", default="zeroq,real")
    parser.add_argument("--count", type=int, default=1024)
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for name in options.networks.split(","):
        for bits in options.bits.split(","):
            for images in options.images.split(","):
                if images == "zeroq" and "vit" in name:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    write([measure(name, bits, images, options.count, Path(folder))])


if __name__ == "__main__":
    main()
