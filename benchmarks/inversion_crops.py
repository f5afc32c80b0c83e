"""IntraQ's and HAST's crop step: all images at once against a Python loop over them.

    python benchmarks/inversion_crops.py [--batch 256] [--size 32] [--rounds 30] [--threads 2]

One step is: draw a crop and a flip for every image, resample, and the gradient to the images. Both
loops are run: one written in plain torch, and, where torchvision can be imported, its own
RandomResizedCrop and RandomHorizontalFlip, image by image as the released code does. The sides
take turns; medians. Ours reads and writes images as the engine keeps them, channels last.

Writes `results/inversion_crops.md` and `.json`; a size that was not run again stays.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from inversion_plain_loops import cropped_one_by_one
from torch import Tensor

from emptyset.cli.freed_memory import keep_freed_memory
from emptyset.inversion.local_reinforcement import LocalReinforcement

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "inversion_crops.json"
# Lets a torchvision built for CUDA be imported beside a torch built for the CPU.
DECLARED = HERE.parent / "tests" / "sitecustomize_torchvision"
SMALLEST = 0.5
TITLES = {
    "ours": "emptyset, all at once",
    "plain_loop": "Python loop in plain torch",
    "torchvision_loop": "Python loop over torchvision's transforms",
}

Step = Callable[[], Tensor]


def ours(batch: int, size: int) -> Step:
    """As the engine runs it."""
    looks = LocalReinforcement((3, size, size), SMALLEST, probability=1.0)
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    # What comes back from the teacher is channels last too.
    slope = torch.randn_like(images)
    generator = torch.Generator().manual_seed(0)

    def step() -> Tensor:
        variable = images.detach().requires_grad_()
        seen = looks.augment(variable, looks.draw(0, generator, batch))
        return torch.autograd.grad(seen, variable, slope)[0]

    return step


def one_by_one(batch: int, size: int, crop: Callable[[Tensor], Tensor]) -> Step:
    """``crop`` is a loop over the images."""
    images, slope = torch.randn(batch, 3, size, size), torch.randn(batch, 3, size, size)

    def step() -> Tensor:
        variable = images.detach().requires_grad_()
        return torch.autograd.grad(crop(variable), variable, slope)[0]

    return step


def torchvision_crop(size: int) -> Callable[[Tensor], Tensor] | None:
    """The released code's loop, or None where torchvision is not to be had."""
    sys.path.insert(0, str(DECLARED))
    try:
        import sitecustomize  # noqa: F401
        from torchvision.transforms import Compose, RandomHorizontalFlip, RandomResizedCrop
    except (ImportError, RuntimeError):
        return None
    finally:
        sys.path.pop(0)
    # Without antialiasing, which images that only grow do not need: the faster way.
    resized = RandomResizedCrop(size, scale=(SMALLEST, 1.0), antialias=False)
    crop = Compose([resized, RandomHorizontalFlip()])
    return lambda images: torch.stack([crop(images[number]) for number in range(len(images))])


def measure(batch: int, size: int, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of a step of each side, and of processor time (all threads)."""
    steps = {
        "ours": ours(batch, size),
        "plain_loop": one_by_one(batch, size, lambda x: cropped_one_by_one(x, SMALLEST)),
    }
    crop = torchvision_crop(size)
    if crop is not None:
        steps["torchvision_loop"] = one_by_one(batch, size, crop)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for turn in range(-3, rounds):
        for name, step in steps.items():
            # The loops take as long as twenty steps of ours.
            again = 10 if name == "ours" else 1
            start, cpu = time.perf_counter(), time.process_time()
            for _ in range(again):
                step()
            passed = time.perf_counter() - start, time.process_time() - cpu
            if turn >= 0:
                taken[name].append((passed[0] / again, passed[1] / again))
    return {
        name: {
            "seconds": statistics.median(seconds for seconds, _ in values),
            "cpu_seconds": statistics.median(seconds for _, seconds in values),
        }
        for name, values in taken.items()
    }


def write(row: dict[str, Any], path: Path) -> None:
    """The committed table."""
    old = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    key = ("batch", "size", "threads")
    kept = [r for r in old if any(r[k] != row[k] for k in key)]
    rows = sorted([*kept, row], key=lambda r: tuple(r[k] for k in key))
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
    text = "\n".join(_lines(rows)) + "\n"
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def _lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "# Crops of IntraQ and HAST",
        "",
        "`python benchmarks/inversion_crops.py`: draw, crop, resize, mirror, and the gradient to "
        "the images. Sides take turns; medians. CPU time counts all "
        "threads. The goal is 20 times as fast as the loop.",
    ]
    for row in rows:
        lines += [
            "",
            f"{row['batch']} images of 3 x {row['size']} x {row['size']}, {row['threads']} "
            f"threads, torch {row['torch']}, load average before {row['load_average_before']}.",
            "",
            "| side | ms per step | ours is faster by | ms of CPU time | in CPU time |",
            "|---|---|---|---|---|",
        ]
        own = row["sides"]["ours"]
        for side, title in TITLES.items():
            if side not in row["sides"]:
                lines.append(f"| {title} | not run: no torchvision | | | |")
                continue
            taken = row["sides"][side]
            cells = [title]
            for kind in ("seconds", "cpu_seconds"):
                cells += [f"{1e3 * taken[kind]:.2f}", f"{taken[kind] / own[kind]:.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Measure one size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", type=Path, default=RESULTS, help="JSON; a page beside it")
    options = parser.parse_args()
    # For all sides, as the command line does.
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    load = round(os.getloadavg()[0], 2)
    found = measure(options.batch, options.size, options.rounds)
    write(
        {
            "batch": options.batch, "size": options.size, "threads": options.threads,
            "rounds": options.rounds, "torch": torch.__version__, "load_average_before": load,
            "sides": found,
        },
        options.table,
    )  # fmt: skip


if __name__ == "__main__":
    main()
