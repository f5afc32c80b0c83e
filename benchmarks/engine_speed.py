"""How much faster the inversion engine is than the plain loop that released codes run.

Plain loop: teacher weights carry gradients, NCHW, float32, eager, torch's own statistics, Adam and
ReduceLROnPlateau, the loss read in every step. Engine: as users get it. Both optimise the same
objective (ZeroQ's, per image, with the input term) from the same noise. Pieces of both alternate
within one process, so that what else the machine does falls on both.

Needs the third-party weights that lie beside a development clone:

    python benchmarks/engine_speed.py ../shared/weights

Writes benchmarks/results/engine_speed.md and .json.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from emptyset.inversion.compilation import Execution, has_fast_bfloat16, worth_compiling
from emptyset.inversion.frozen_teacher import FrozenTeacher
from emptyset.inversion.method import Method
from emptyset.synthesizers.zeroq import ZeroQ, ZeroQConfig
from emptyset.teachers.teacher import InputSpec, Teacher, hash_of_weights

NAME = "cifar10_resnet20_akamaster"
RESULTS = Path(__file__).parent / "results"
SPEC = InputSpec((3, 32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
IMAGES_OF_A_RUN, STEPS_OF_A_RUN = 1024, 500


def load(folder: Path) -> nn.Module:
    spec = importlib.util.spec_from_file_location("networks", folder / "networks.py")
    assert spec is not None
    assert spec.loader is not None
    networks = importlib.util.module_from_spec(spec)
    # The compiler looks the module of a forward up by its name.
    sys.modules["networks"] = networks
    spec.loader.exec_module(networks)
    module: nn.Module = networks.load(str(folder / f"{NAME}.safetensors"))
    return module.eval()


def distance(features: list[Tensor], norms: list[nn.BatchNorm2d], images: Tensor) -> Tensor:
    """ZeroQ's objective with torch's own statistics."""
    total = torch.zeros(())
    stored = [(n.running_mean, n.running_var) for n in norms]
    stored.append((torch.zeros(3), torch.ones(3)))
    for x, (mean, var) in zip([*features, images], stored, strict=True):
        spread = (x.var(dim=(2, 3)) + 1e-6).sqrt()
        gap = (x.mean(dim=(2, 3)) - mean).square() + (spread - (var + 1e-6).sqrt()).square()
        total = total + gap.sum() / len(x)
    return total


class PlainLoop:
    """What released codes do, one step at a time."""

    def __init__(self, module: nn.Module, noise: Tensor) -> None:
        self.module = module.requires_grad_(True)
        self.features: list[Tensor] = []
        self.norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in self.norms:
            norm.register_forward_pre_hook(lambda _m, args: self.features.append(args[0]))
        self.images = noise.clone().requires_grad_()
        self.optimizer = torch.optim.Adam([self.images], lr=0.5)
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, min_lr=1e-4, patience=100
        )

    def step(self) -> float:
        self.features.clear()
        self.optimizer.zero_grad()
        self.module.zero_grad()
        self.module(self.images)
        loss = distance(self.features, self.norms, self.images)
        loss.backward()
        self.optimizer.step()
        self.scheduler.step(loss.item())
        return loss.item()

    @torch.no_grad()
    def judge(self, images: Tensor) -> float:
        """The objective in float32, the same judge for both."""
        self.features.clear()
        self.module(images)
        return distance(self.features, self.norms, images).item()


class Engine:
    """The engine's own step, one at a time."""

    def __init__(self, teacher: Teacher, noise: Tensor, execution: Execution) -> None:
        self.method: Method = ZeroQ(ZeroQConfig()).method(teacher)
        self.frozen = FrozenTeacher(teacher)
        self.context = self.frozen.loss_of(self.method, execution)
        self.loss = self.context.__enter__()
        images = noise.clone().contiguous(memory_format=torch.channels_last)
        group = self.method.groups[0]
        self.update, self.schedule = group.update.start(images), group.schedule.start(noise.device)
        self.images, self.done = images, 0

    def step(self) -> float:
        group = self.method.groups[0]
        variable = self.images.detach().requires_grad_()
        value, _ = self.loss([variable], None, {})
        (gradient,) = torch.autograd.grad(value, [variable])
        value = value.detach()
        rate = self.schedule["rate"]
        group.update.step(self.images, gradient, self.update, rate, self.done)
        self.done += 1
        group.schedule.advance(self.schedule, value, self.done, self.method.steps)
        return value.item()


def measure(folder: Path, batch: int, rounds: int, piece: int) -> dict[str, Any]:
    teacher_module = load(folder).requires_grad_(False)
    teacher = Teacher(NAME, teacher_module, SPEC, weights_hash=hash_of_weights(teacher_module))
    noise = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    half = has_fast_bfloat16(torch.device("cpu"))
    dtype = torch.bfloat16 if half else torch.float32
    runners: dict[str, Any] = {
        "plain": PlainLoop(load(folder), noise),
        "eager": Engine(teacher, noise, Execution(False, dtype)),
        "compiled": Engine(teacher, noise, Execution(True, dtype)),
    }
    first = {}
    for name, runner in runners.items():
        start = time.perf_counter()
        runner.step()
        first[name] = time.perf_counter() - start
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, runner in runners.items():
            start = time.perf_counter()
            for _ in range(piece):
                runner.step()
            seconds[name].append((time.perf_counter() - start) / piece)
    step = {name: statistics.median(values) for name, values in seconds.items()}
    judge = runners["plain"]
    losses = {name: judge.judge(runner.images.detach()) for name, runner in runners.items()}
    batches = IMAGES_OF_A_RUN // batch
    steps_of_a_run = STEPS_OF_A_RUN * batches
    compiling = first["compiled"] - step["compiled"]
    run = {name: steps_of_a_run * each for name, each in step.items()}
    run["compiled"] += compiling
    elements, layers = FrozenTeacher(teacher).work_per_image()
    chosen = worth_compiling(
        torch.device("cpu"), elements=elements * batch, layers=layers,
        steps=steps_of_a_run, threads=torch.get_num_threads(),
    )  # fmt: skip
    return {
        "network": NAME,
        "batch": batch,
        "steps": 1 + rounds * piece,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "load_average": os.getloadavg()[0],
        "seconds_per_step": step,
        "image_steps_per_second": {name: batch / each for name, each in step.items()},
        "ratio_without_compile_time": {n: step["plain"] / step[n] for n in step},
        "compile_seconds": compiling,
        "seconds_of_a_run": run,
        "ratio_with_compile_time": {n: run["plain"] / run[n] for n in run},
        "chosen_for_a_run": "compiled" if chosen else "eager",
        "break_even_steps": compiling / max(step["eager"] - step["compiled"], 1e-9),
        "final_loss": losses,
        "final_loss_ratio": {n: losses[n] / losses["plain"] for n in losses},
    }


def table(found: dict[str, Any]) -> str:
    rows = [
        "# Speed of the inversion engine",
        "",
        f"`{found['network']}`, ZeroQ's objective per image, batch {found['batch']}, "
        f"{found['steps']} steps each, engine in {found['dtype']}, {found['threads']} threads "
        f"({found['processor']}), torch {found['torch']}, load average "
        f"{found['load_average']:.1f}. Pieces alternate in one process; medians.",
        "",
        "| | images · steps / s | ratio | ratio of a run | final loss | to plain |",
        "|---|---|---|---|---|---|",
    ]
    for name, title in (
        ("plain", "plain loop"),
        ("eager", "engine, eager"),
        ("compiled", "engine, compiled"),
    ):
        rows.append(
            f"| {title} | {found['image_steps_per_second'][name]:.0f} "
            f"| {found['ratio_without_compile_time'][name]:.2f} "
            f"| {found['ratio_with_compile_time'][name]:.2f} "
            f"| {found['final_loss'][name]:.3f} | {found['final_loss_ratio'][name]:.4f} |"
        )
    rows += [
        "",
        f'"Ratio of a run" counts the {found["compile_seconds"]:.0f} s of compilation, spread '
        f"over {IMAGES_OF_A_RUN:,} images of {STEPS_OF_A_RUN} steps (the published number); the "
        f"engine runs such a job {found['chosen_for_a_run']}. Compiling pays from "
        f"{found['break_even_steps']:.0f} steps of this batch on. The final loss is that of all "
        "three image sets under the same float32 network.",
        "",
        "Measure again: `python benchmarks/engine_speed.py FOLDER_WITH_WEIGHTS`.",
        "",
    ]
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--piece", type=int, default=8)
    arguments = parser.parse_args()
    found = measure(arguments.weights, arguments.batch, arguments.rounds, arguments.piece)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "engine_speed.json").write_text(json.dumps(found, indent=2) + "\n")
    (RESULTS / "engine_speed.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
