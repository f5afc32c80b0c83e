"""Iterations per second of Qimera's training, against the released loop in its plain form.

    python benchmarks/qimera_speed.py [--steps 120] [--planned 2000] [--batch 200] [--threads 2]

Both sides are jobs in processes of their own that work by turns of ten iterations: generator and
student of a ResNet-20 for CIFAR-10, 4 bits in every layer. Ours is what users get: the refiner
`distill`, preset ``gdfq``, beside the source `qimera`; whether it compiles, and in which precision
it multiplies, are its own decisions, made for ``--planned`` iterations, of which ``--steps`` are
run. The other is ``qimera_plain_loop.py``. Iterations are those after the warm-up, in which both
networks learn. Needs `../shared/weights`.

Writes `results/qimera_speed.md` and `.json`.
"""

import argparse
import copy
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import shared_networks as shared
import torch
from inversion_paced import Job, Turns, run_by_turns
from qimera_plain_loop import PlainQimera

from emptyset.cli.freed_memory import keep_freed_memory
from emptyset.generation import source
from emptyset.graph.student import prepare
from emptyset.monitor import SilentMonitor
from emptyset.refiners.distill import Distill, DistillConfig

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "qimera_speed.json"
NETWORK, BITS, TOGETHER = "cifar10_resnet20_akamaster", 4, 2
TITLES = {"emptyset": "emptyset, `distill` beside `qimera`", "plain": "plain loop"}
SHAPE = ("steps", "planned", "batch", "threads", "seed")
# Iterations of the paper.
PUBLISHED = 80_000
PIECE = 10
# Of the published 400 epochs: before them the student is not updated.
WARM_UP = 4 / 400


class EnoughError(Exception):
    """As many iterations as are measured."""


class PacedMonitor(SilentMonitor):
    """Every iteration at its turn, and the end after some."""

    def __init__(self, turns: Turns, steps: int) -> None:
        self._turns, self._steps = turns, steps

    def advance(self, what: str, done: int, total: int, detail: str = "") -> None:
        """Called after each iteration."""
        self._turns.step_done()
        if done == self._steps:
            raise EnoughError


def warm_up_of(options: argparse.Namespace) -> int:
    """Iterations in which the student is not updated."""
    return max(1, round(options.planned * WARM_UP))


def child(options: argparse.Namespace) -> None:
    """One of the jobs."""
    turns = Turns(torch.cuda.synchronize if shared.DEVICE.type == "cuda" else lambda: None)
    torch.set_num_threads(options.threads)
    teacher = shared.load(NETWORK)
    if options.child == "plain":
        torch.manual_seed(options.seed)
        torch.set_default_device(shared.DEVICE)
        network = copy.deepcopy(teacher.module).requires_grad_(True)
        loop = PlainQimera(teacher.module.requires_grad_(True), network, BITS)
        turns.begin()
        planned = turns.steps(range(options.steps))
        loop.run(planned, options.batch, warm_up=warm_up_of(options), together=TOGETHER)
        turns.finish(torch=torch.__version__)
        return
    # As the command line does.
    keep_freed_memory()
    student = prepare(teacher, f"w{BITS}a{BITS}", plan="every_layer", batch_norm="frozen")
    beside = source(teacher, "qimera", seed=options.seed, superposed_classes=TOGETHER)
    config = DistillConfig(
        preset="gdfq", steps=options.planned, warm_up=WARM_UP, batch_size=options.batch
    )
    turns.begin()
    monitor = PacedMonitor(turns, options.steps)
    try:
        Distill(config).refine(student, beside, seed=options.seed, monitor=monitor)
    except EnoughError:
        card = beside.card()
    turns.finish(torch=torch.__version__, compiled=card["compiled"], dtype=card["dtype"])


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Both jobs, ours first."""
    shape = [f"--{name}={getattr(options, name)}" for name in SHAPE]
    threads = {"OMP_NUM_THREADS": str(options.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    own = [sys.executable, "-W", "ignore", str(HERE / "qimera_speed.py"), *shape]
    jobs = [
        Job(name, [*own, f"--child={name}"], options.steps, options.batch, threads)
        for name in TITLES
    ]
    load = os.getloadavg()[0]
    where = "CPU"
    if shared.DEVICE.type == "cuda":
        where = torch.cuda.get_device_name()
    run_by_turns(jobs, PIECE * options.batch)
    about = {name: getattr(options, name) for name in SHAPE}
    about |= {
        "network": NETWORK,
        "bits": BITS,
        "device": where,
        "load_average_before": round(load, 2),
    }
    rows = [about | row_of(job, warm_up_of(options)) for job in jobs]
    for row in rows:
        for name, ratio in {
            "iterations_per_second": "ours_is_times_as_fast",
            "iterations_per_cpu_second": "in_cpu_time",
            "whole_job_per_second": "with_set_up",
        }.items():
            row[ratio] = round(rows[0][name] / row[name], 2)
    return rows


def row_of(job: Job, warm_up: int) -> dict[str, Any]:
    """What one job did after its warm-up.

    The turn in which the student learns first also compiles, so medians are of the turns behind it.
    """
    done, later = 0, []
    for turn in job.turns:
        if done > warm_up:
            later.append(turn)
        done += turn[0]
    measured = later[1:] or later
    step = statistics.median(seconds / steps for steps, seconds, _ in measured)
    cpu = statistics.median(seconds / steps for steps, _, seconds in measured)
    whole = sum(seconds for _, seconds, _ in job.turns)
    return {
        "side": job.name,
        "iterations_per_second": round(1 / step, 4),
        "iterations_per_cpu_second": round(1 / cpu, 4),
        "whole_job_per_second": round(job.steps / whole, 4),
        "measured_iterations": sum(turn[0] for turn in measured),
        **job.facts,
    }


def write(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The committed table."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
    text = "\n".join(_lines(rows)) + "\n"
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def _lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    about = rows[0]
    gpu = about.get("device", "CPU") != "CPU"
    goal = "4 times as fast, and the whole in 12 minutes" if gpu else "3 times as fast"
    lines = [
        "# Speed of a Qimera iteration",
        "",
        f"`{NETWORK}`, w{BITS}a{BITS}, every layer, batches of {about['batch']}, "
        f"{about.get('device', 'CPU')}, {about['threads']} threads, torch {about['torch']}, "
        f"load average before {about['load_average_before']}. "
        "`python benchmarks/qimera_speed.py`: both jobs in processes of their own, by "
        "turns of ten iterations; medians of the turns in which "
        'generator and student learn. "With set-up" counts all of the '
        f'{about["steps"]} iterations that were run, warm-up and compiling included; "in CPU '
        'time" counts all threads. "Whole" is the paper\'s 80,000 iterations at the speed of the '
        f"{about['measured_iterations']} that were measured. The goal is {goal}.",
        "",
        "| side | iterations / s | ours is faster by | in CPU time | with set-up | whole [min] "
        "| run as |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        how = "eager, float32"
        if "compiled" in row:
            how = f"generator {'compiled' if row['compiled'] else 'eager'}, {row['dtype']}"
        cells = [
            TITLES[row["side"]], f"{row['iterations_per_second']:.2f}",
            f"{row['ours_is_times_as_fast']:.2f}", f"{row['in_cpu_time']:.2f}",
            f"{row['with_set_up']:.2f}", f"{PUBLISHED / row['iterations_per_second'] / 60:,.0f}",
            how,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Run both sides."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=120, help="iterations that are run")
    parser.add_argument("--planned", type=int, default=2000, help="what ours decides for")
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, default=RESULTS, help="JSON; a page beside it")
    parser.add_argument("--child", choices=list(TITLES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    least = warm_up_of(options) + 2 * PIECE
    if not least <= options.steps < options.planned:
        parser.error(f"--steps must be at least {least}, and fewer than --planned")
    if options.child:
        child(options)
        return
    write(run(options), options.table)


if __name__ == "__main__":
    main()
