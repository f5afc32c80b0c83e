"""Image-iterations per second of the inversion engine, against Sony's MCT and a plain loop.

    python benchmarks/inversion_speed.py [--only mct,genie_d] [--mct-python PYTHON] [--images 256]
        [--batch 128] [--steps 500] [--planned 1000] [--threads 2]

Every side is one whole job in a process of its own: the same number of images, moved by the same
number of steps, in equal batches. The jobs work by turns of ten steps. Ours is what users get,
`Synthesizer.synthesize`; whether it compiles is its own decision, made for ``--planned`` steps,
of which ``--steps`` are run (MCT makes 1,000, Genie-D 4,000). All images are judged by
`evaluate/batch_norm_distance.py` in float32. Needs `../shared/weights`; the MCT side needs an
environment of its own:

    python3.11 -m venv MCT
    MCT/bin/python -m pip install torch==2.13.0
    MCT/bin/python -m pip install torch==2.13.0 "model-compression-toolkit==2.6.*" safetensors
    MCT/bin/python -m pip install --no-deps torchvision==0.28.0
    python benchmarks/inversion_speed.py --mct-python MCT/bin/python

Writes `results/inversion_speed.md` and `.json`; rows of a comparison that was not run stay.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shared_networks as shared
import torch
from inversion_paced import Job, Turns, run_by_turns
from inversion_plain_loops import PlainGenie

from emptyset.cli.freed_memory import keep_freed_memory
from emptyset.evaluate.batch_norm_distance import batch_norm_distance
from emptyset.images.image_set import ImageSet
from emptyset.inversion import engine
from emptyset.monitor import SilentMonitor
from emptyset.registry import synthesizers

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "inversion_speed.json"
NETWORK, SIZE = "cifar10_resnet20_akamaster", 32
# Lets a torchvision built for CUDA be imported beside a torch built for the CPU.
DECLARED = HERE.parent / "tests" / "sitecustomize_torchvision"
# Our side comes first. MCT moves pixels by the batch's means and standard deviations; the settings
# of ZeroQ that are not named are its own.
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "mct": ("zeroq", {"statistics": "batch"}),
    "genie_d": ("genie_d", {}),
}
TITLES = {
    "zeroq": "emptyset `zeroq`, statistics of the batch",
    "genie_d": "emptyset `genie_d`",
    "mct_defaults": "MCT, its own settings",
    "mct_pixels": "MCT, without its smoothing and cropping",
    "plain_genie": "plain loop of the paper's settings",
}
SHAPE = ("images", "batch", "steps", "threads", "seed")
PIECE = 10


class PacedMonitor(SilentMonitor):
    """Every step of the engine at its turn."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def advance(self, what: str, done: int, total: int, detail: str = "") -> None:
        """Called after each step."""
        self._turns.step_done()


def child(options: argparse.Namespace) -> None:
    """One of the jobs that emptyset's own environment runs."""
    turns = Turns()
    torch.set_num_threads(options.threads)
    teacher = shared.load(NETWORK)
    if options.child == "plain_genie":
        torch.manual_seed(options.seed)
        loop = PlainGenie(teacher.module.requires_grad_(True), SIZE)
        turns.begin()
        batches = [
            loop.batch(options.batch, turns.steps(range(options.steps)))
            for _ in range(options.images // options.batch)
        ]
        np.save(options.out, torch.cat(batches).numpy())
        turns.finish(torch=torch.__version__)
        return
    method, settings = OURS[options.child]
    # As the command line does.
    keep_freed_memory()
    entry = synthesizers.get(method)
    maker = entry.make(entry.config(steps=options.steps, batch_size=options.batch, **settings))
    as_planned = engine.worth_compiling
    engine.worth_compiling = lambda device, *, steps, **work: as_planned(
        device, steps=steps * options.planned // options.steps, **work
    )
    turns.begin()
    made: ImageSet = maker.synthesize(
        teacher, options.images, seed=options.seed, monitor=PacedMonitor(turns)
    )
    np.save(options.out, made.images.numpy())
    how = {name: made.history[-1][name] for name in ("compiled", "dtype")}
    turns.finish(torch=torch.__version__, **how)


def jobs_of(comparison: str, options: argparse.Namespace, folder: Path) -> list[Job]:
    """Ours first."""
    shape = [f"--{n}={getattr(options, n)}" for n in SHAPE]
    batches = options.images // options.batch
    threads = {"OMP_NUM_THREADS": str(options.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    own = [sys.executable, "-W", "ignore", str(HERE / "inversion_speed.py"), *shape]

    def ours(name: str, job: str) -> Job:
        command = [*own, f"--planned={options.planned}", f"--child={job}"]
        command.append(f"--out={folder / name}.npy")
        return Job(name, command, options.steps * batches, options.batch, threads)

    jobs = [ours(OURS[comparison][0], comparison)]
    if comparison == "genie_d":
        return [*jobs, ours("plain_genie", "plain_genie")]
    if options.mct_python is not None:
        script = [str(options.mct_python), "-W", "ignore", str(HERE / "inversion_mct_side.py")]
        script += [str(shared.SHARED / "weights"), NETWORK, f"--size={SIZE}", *shape]
        declared = threads | {"PYTHONPATH": str(DECLARED)}
        for pipeline in options.mct_settings.split(","):
            name = f"mct_{pipeline}"
            command = [*script, f"--pipeline={pipeline}", f"--out={folder / name}.npy"]
            # One of its iterations moves every batch.
            jobs.append(Job(name, command, options.steps, options.images, declared))
    return jobs


def row_of(job: Job, images: ImageSet, batch: int) -> dict[str, Any]:
    """What one job did, and how far its images are."""
    teacher = shared.load(NETWORK)
    first, later = job.turns[0], job.turns[1:]
    step = statistics.median(seconds / steps for steps, seconds, _ in later)
    cpu = statistics.median(seconds / steps for steps, _, seconds in later)
    apart = batch_norm_distance(images, teacher, batch_size=batch)
    together = batch_norm_distance(images, teacher, batch_size=len(images))
    whole = sum(seconds for _, seconds, _ in job.turns)
    return {
        "side": job.name,
        "image_iterations_per_second": round(job.images_per_step / step, 1),
        "whole_job_per_second": round(job.steps * job.images_per_step / whole, 1),
        "image_iterations_per_cpu_second": round(job.images_per_step / cpu, 1),
        "first_step_seconds": round(first[1], 2),
        "distance_of_batches": round(apart.sum_l2, 3),
        "squared_distance_of_batches": round(apart.mean_mse, 5),
        "distance_of_the_set": round(together.sum_l2, 3),
        **job.facts,
    }


def compare(comparison: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run one comparison."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = jobs_of(comparison, options, Path(folder))
        load = os.getloadavg()[0]
        run_by_turns(jobs, PIECE * options.batch)
        made = {j.name: np.load(Path(folder) / f"{j.name}.npy") for j in jobs}
    rows = [row_of(job, ImageSet(torch.from_numpy(made[job.name])), options.batch) for job in jobs]
    about = {
        "comparison": comparison, "images": options.images, "batch": options.batch,
        "steps": options.steps, "planned": options.planned, "threads": options.threads,
        "seed": options.seed, "load_average_before": round(load, 2),
    }  # fmt: skip
    for row in rows:
        row |= {
            "ours_is_times_as_fast": _ratio(rows[0], row, "image_iterations_per_second"),
            "with_set_up": _ratio(rows[0], row, "whole_job_per_second"),
            "in_cpu_time": _ratio(rows[0], row, "image_iterations_per_cpu_second"),
        }
        print(row, flush=True)
    return [about | row for row in rows]


def _ratio(ours: Mapping[str, Any], other: Mapping[str, Any], name: str) -> float:
    return round(float(ours[name]) / float(other[name]), 2)


def write(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The committed table; comparisons that were not run stay as they were."""
    old = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    again = {(row["comparison"], row["side"]) for row in rows}
    kept = [row for row in old if (row["comparison"], row["side"]) not in again]
    merged = sorted([*kept, *rows], key=lambda row: list(OURS).index(row["comparison"]))
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"network": NETWORK, "rows": merged}, indent=1) + "\n", "utf-8")
    text = "\n".join(_lines(merged)) + "\n"
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def _lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "# Speed of inversion against other code",
        "",
        f"`{NETWORK}`. `python benchmarks/inversion_speed.py --mct-python PYTHON`: whole jobs in "
        "processes of their own, by turns of ten steps. The distance is that of the finished "
        "images from the stored BatchNorm statistics (sum of the layers' norms, float32): mean of "
        'the batches, and of all images as one batch. "With set-up" counts the whole job, '
        'compiling included; "in CPU time" counts all threads, and is what other programs disturb '
        "least. The goal is 4 times as fast at an equal or smaller distance.",
    ]
    for comparison in dict.fromkeys(row["comparison"] for row in rows):
        these = [row for row in rows if row["comparison"] == comparison]
        about = these[0]
        lines += [
            "",
            f"{about['images']} images in batches of {about['batch']}, {about['steps']} steps "
            f"each of {about['planned']:,} planned, {about['threads']} threads, torch "
            f"{about['torch']}, load average before {about['load_average_before']}.",
            "",
            "| side | image-iterations / s | ours is faster by | with set-up "
            "| in CPU time | first step [s] "
            "| distance, batches | distance, set | run as |",
            "|---|---|---|---|---|---|---|---|---|",
            *(_line(row) for row in these),
        ]
        if comparison == "mct" and not any(row["side"].startswith("mct") for row in these):
            lines.append("| MCT | not run: needs `--mct-python` | | | | | | | |")
    return lines


def _line(row: Mapping[str, Any]) -> str:
    how = f"MCT {row['version']}, torch {row['torch']}" if "version" in row else "eager, float32"
    if "compiled" in row:
        how = f"{'compiled' if row['compiled'] else 'eager'}, {row['dtype']}"
    cells = [
        TITLES[row["side"]], f"{row['image_iterations_per_second']:.0f}",
        f"{row['ours_is_times_as_fast']:.2f}", f"{row['with_set_up']:.2f}",
        f"{row['in_cpu_time']:.2f}",
        f"{row['first_step_seconds']:.1f}", f"{row['distance_of_batches']:.2f}",
        f"{row['distance_of_the_set']:.2f}", how,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run the comparisons that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(OURS))
    parser.add_argument("--mct-python", type=Path)
    parser.add_argument("--mct-settings", default="defaults,pixels")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--planned", type=int, default=1000, help="steps that ours decides for")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, default=RESULTS, help="JSON; a page beside it")
    parser.add_argument("--child", choices=[*OURS, "plain_genie"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.images % options.batch:
        parser.error("--images must be a multiple of --batch: all sides work in equal batches")
    if options.child:
        child(options)
        return
    for comparison in options.only.split(","):
        write(compare(comparison, options), options.table)


if __name__ == "__main__":
    main()
