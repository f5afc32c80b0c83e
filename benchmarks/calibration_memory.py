"""Peak memory of calibration does not grow with the images.

    python benchmarks/calibration_memory.py [--counts 64,4096] [--bits w8a8]

A folder of photos of 256 x 256 pixels is made, `torchvision`-sized 224 crops of them calibrate an
untrained ResNet-18, each count in a process of its own.
Writes `results/engine_calibration_memory.md` and `.json`.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def make_photos(folder: Path, count: int) -> None:
    """Smooth random photos, JPEG."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for i in range(count):
        coarse = random.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((256, 256)).save(folder / f"{i:05d}.jpg", quality=90)


def calibrate(folder: Path, bits: str) -> None:
    """In a process of its own: prints peak memory [MB] and seconds."""
    import timm

    import emptyset
    from emptyset.teachers.teacher import InputSpec, Teacher

    module = timm.create_model("resnet18", pretrained=False).eval().requires_grad_(False)
    spec = InputSpec((3, 224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), resize=256)
    teacher = Teacher("resnet18", module, spec)
    student = emptyset.prepare(teacher, bits)
    images = emptyset.images_from(folder, teacher)
    start = time.perf_counter()
    emptyset.refine(student, images)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps({"images": len(images), "peak_mb": peak, "seconds": time.perf_counter() - start})
    )


def main() -> None:
    """Run all counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", default="64,4096")
    parser.add_argument("--bits", default="w8a8")
    parser.add_argument("--child", type=Path)
    options = parser.parse_args()
    if options.child:
        calibrate(options.child, options.bits)
        return
    rows = []
    for count in map(int, options.counts.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            make_photos(Path(folder), count)
            command = [sys.executable, "-W", "ignore", __file__, "--child", folder]
            command += ["--bits", options.bits]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
            print(rows[-1], flush=True)
    growth = rows[-1]["peak_mb"] - rows[0]["peak_mb"]
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"rows": rows, "growth_mb": growth}, indent=1) + "\n"
    (RESULTS / "engine_calibration_memory.json").write_text(text, encoding="utf-8")
    lines = [
        "# Memory of calibration", "",
        f"`python benchmarks/calibration_memory.py --bits {options.bits}`: ResNet-18, 224 x 224, "
        "plan `integer`, photos streamed from a folder.", "",
        "| images | peak memory [MB] | seconds |", "|---|---|---|",
        *(f"| {r['images']} | {r['peak_mb']:.0f} | {r['seconds']:.0f} |" for r in rows), "",
        f"Growth from the smallest to the largest: {growth:.0f} MB.",
    ]  # fmt: skip
    (RESULTS / "engine_calibration_memory.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
