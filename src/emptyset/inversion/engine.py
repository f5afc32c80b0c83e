"""Runs an inversion method: batch after batch, resumable, the teacher untouched.

What makes it fast: the teacher's weights carry no gradients, tensors are channels-last, the
teacher runs in bfloat16 where the hardware multiplies it, one pass gives all statistics of a layer
(``losses/layer_statistics.py``), the objective is compiled where that pays, and no step waits for
the device.
"""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from emptyset.errors import ImagesError, UnsupportedModelError
from emptyset.images.image_set import ImageSet
from emptyset.inversion.batch_plan import BatchPlan, plan_batches
from emptyset.inversion.compilation import (
    Execution,
    compiler_found,
    has_fast_bfloat16,
    worth_compiling,
)
from emptyset.inversion.frozen_teacher import FrozenTeacher, Loss
from emptyset.inversion.method import Method
from emptyset.monitor import SILENT, Monitor, State
from emptyset.teachers.teacher import Teacher

# On an accelerator the loss is read, and so waited for, only every so many steps.
_LOOK_EVERY = 25


@dataclass
class _Progress:
    """Everything that decides how one batch goes on."""

    variables: list[Tensor]
    updates: list[State]
    schedules: list[State]
    generator: torch.Generator
    targets: Tensor | None
    done: int
    harvest: list[Tensor]
    best_loss: Tensor
    best_images: Tensor | None


def invert(
    method: Method,
    teacher: Teacher,
    count: int,
    *,
    seed: int,
    settings: Mapping[str, Any],
    monitor: Monitor = SILENT,
    execution: Execution | None = None,
) -> ImageSet:
    """Make exactly ``count`` images.

    Args:
        method: What to optimise, and how.
        teacher: Judges the images; it is copied, never changed.
        count: Number of images, at least 1.
        seed: Seed of everything random.
        settings: The method's settings, for the history (JSON data).
        monitor: Hears of progress, keeps and restores states.
        execution: How to run the teacher; None: decided here (and kept).

    Raises:
        UnsupportedModelError: If the method needs BatchNorm and the teacher has none.
        ImagesError: If the loss or the images stop being finite.
    """
    _require_batch_norm(method, teacher)
    harvests = max(1, len(method.snapshots))
    plan = plan_batches(-(-count // harvests), method.batch_size, seed=seed)
    frozen = FrozenTeacher(teacher)
    execution = execution or _decide(method, frozen, plan, monitor)
    images: list[Tensor] = []
    targets: list[Tensor] = []
    with ExitStack() as hooks:
        loss = hooks.enter_context(frozen.loss_of(method, execution))
        if execution.compiled and not _works(method, frozen, loss, plan, monitor):
            hooks.close()
            execution = replace(execution, compiled=False)
            loss = hooks.enter_context(frozen.loss_of(method, execution))
        monitor.keep(f"{method.name}.execution", execution.state, final=True)
        for batch in range(plan.batches):
            found = _batch(method, frozen, loss, plan, batch, monitor)
            kept = plan.kept_of(batch)
            for number in range(harvests):
                images.append(found[f"images.{number}"][:kept])
                if "targets" in found:
                    targets.append(found["targets"][:kept])
    entry = {
        "stage": "synthesize",
        "method": method.name,
        "settings": dict(settings),
        "seed": seed,
        "teacher": teacher.weights_hash,
        "count": count,
        "batch_size": plan.size,
        "compiled": execution.compiled,
        "dtype": str(execution.dtype).removeprefix("torch."),
        "assumed_pixel_mean": list(frozen.units.mean),
        "assumed_pixel_std": list(frozen.units.std),
    }
    everything = torch.cat(images)[:count]
    return ImageSet(everything, torch.cat(targets)[:count] if targets else None, history=(entry,))


def _require_batch_norm(method: Method, teacher: Teacher) -> None:
    if method.needs_batch_norm and not teacher.stored_batch_norms():
        raise UnsupportedModelError(
            f"{method.name} matches BatchNorm statistics, but {teacher.name} "
            f"({type(teacher.module).__name__}) has no BatchNorm2d layer that stores them. Give "
            "real images instead: --images DIR."
        )


def _decide(method: Method, frozen: FrozenTeacher, plan: BatchPlan, monitor: Monitor) -> Execution:
    """Compiled or not, and the precision; what an earlier, killed run decided stays."""
    if (kept := monitor.restore(f"{method.name}.execution")) is not None:
        return Execution.from_state(kept)
    device = frozen.device
    elements, layers = frozen.work_per_image()
    compiled = worth_compiling(
        device,
        elements=elements * plan.size,
        layers=layers,
        steps=method.steps * plan.batches,
        threads=torch.get_num_threads(),
    )
    if compiled and not compiler_found(device):
        compiled = False
        monitor.note(
            f"{method.name}: no C++ compiler found, so the objective is not compiled and takes "
            "about one and a half times as long. Install g++ or clang to change that."
        )
    dtype = torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    return Execution(compiled, dtype)


def _works(
    method: Method, frozen: FrozenTeacher, loss: Loss, plan: BatchPlan, monitor: Monitor
) -> bool:
    """Whether the compiled objective runs; tried on a step that is thrown away."""
    try:
        _step(method, loss, _start(method, frozen, plan, 0), 0, frozen)
    # Whatever a compiler may raise. An error of the method itself comes again without it.
    except Exception as error:
        monitor.note(
            f"{method.name}: torch.compile cannot compile the objective "
            f"({type(error).__name__}), so it runs as it is and takes about one and a half times "
            "as long."
        )
        return False
    return True


def _batch(
    method: Method,
    frozen: FrozenTeacher,
    loss: Loss,
    plan: BatchPlan,
    batch: int,
    monitor: Monitor,
) -> State:
    """The finished images of one batch: ``images.0`` and on, and ``targets``."""
    key = f"{method.name}.batch{batch:05d}"
    kept = monitor.restore(key)
    if kept is not None and "images.0" in kept:
        return kept
    progress = _start(method, frozen, plan, batch)
    if kept is not None:
        _resume(progress, kept, frozen)
    last = math.nan
    for step in range(progress.done, method.steps):
        value = _step(method, loss, progress, step, frozen)
        if frozen.device.type == "cpu" or (step + 1) % _LOOK_EVERY == 0:
            last = _finite(value, method, batch, step)
        done = batch * method.steps + step + 1
        detail = f"batch {batch + 1} of {plan.batches}, loss {last:.4g}"
        monitor.advance(method.name, done, plan.batches * method.steps, detail)
        if step + 1 < method.steps:
            monitor.keep(key, lambda: _state(progress))
    found = _finished(method, frozen, progress, batch)
    monitor.keep(key, lambda: found, final=True)
    return found


def _start(method: Method, frozen: FrozenTeacher, plan: BatchPlan, batch: int) -> _Progress:
    generator = torch.Generator().manual_seed(plan.seeds[batch])
    targets = None if method.targets is None else method.targets(generator, plan.size)
    first = method.canvas.start((plan.size, *frozen.shape), generator)
    variables = [_on_device(value, frozen.device) for value in first]
    return _Progress(
        variables=variables,
        updates=[g.update.start(v) for g, v in zip(method.groups, variables, strict=True)],
        schedules=[g.schedule.start(frozen.device) for g in method.groups],
        generator=generator,
        targets=None if targets is None else targets.to(frozen.device),
        done=0,
        harvest=[],
        best_loss=torch.tensor(math.inf, device=frozen.device),
        best_images=None,
    )


def _step(
    method: Method, loss: Loss, progress: _Progress, step: int, frozen: FrozenTeacher
) -> Tensor:
    """One step; gives the loss before it."""
    size = len(progress.variables[0])
    drawn = {} if method.draw is None else method.draw(step, progress.generator, size)
    drawn = {name: value.to(frozen.device) for name, value in drawn.items()}
    variables = [v.detach().requires_grad_() for v in progress.variables]
    value = loss(variables, progress.targets, drawn)
    # For what is optimised only: the teacher's copy keeps no trace.
    gradients = torch.autograd.grad(value, variables)
    value = value.detach()
    if method.keep_best:
        _remember_best(method, progress, value)
    for index, group in enumerate(method.groups):
        schedule = progress.schedules[index]
        group.update.step(
            progress.variables[index],
            gradients[index],
            progress.updates[index],
            schedule["rate"],
            step,
        )
        group.schedule.advance(schedule, value, step + 1, method.steps)
    progress.done = step + 1
    if progress.done in method.snapshots:
        progress.harvest.append(_rendered(method, progress).clone())
    return value


@torch.no_grad()
def _remember_best(method: Method, progress: _Progress, value: Tensor) -> None:
    images = _rendered(method, progress)
    if progress.best_images is None:
        progress.best_images = images.clone()
    better = value < progress.best_loss
    progress.best_loss = torch.where(better, value, progress.best_loss)
    progress.best_images = torch.where(better, images, progress.best_images)


@torch.no_grad()
def _rendered(method: Method, progress: _Progress) -> Tensor:
    return method.canvas.render(progress.variables)


def _finished(method: Method, frozen: FrozenTeacher, progress: _Progress, batch: int) -> State:
    if method.snapshots:
        harvest = progress.harvest
    elif method.keep_best and progress.best_images is not None:
        harvest = [progress.best_images]
    else:
        harvest = [_rendered(method, progress)]
    found: State = {}
    for number, images in enumerate(harvest):
        ready = frozen.units.to_teacher(images).detach().cpu().contiguous()
        if not bool(torch.isfinite(ready).all()):
            raise _not_finite(method, batch, progress.done)
        found[f"images.{number}"] = ready
    if progress.targets is not None:
        found["targets"] = progress.targets.cpu()
    return found


def _finite(value: Tensor, method: Method, batch: int, step: int) -> float:
    number = value.item()
    if not math.isfinite(number):
        raise _not_finite(method, batch, step + 1)
    return number


def _not_finite(method: Method, batch: int, step: int) -> ImagesError:
    return ImagesError(
        f"{method.name}: the loss or the images are not finite after step {step} of batch "
        f"{batch + 1}. Check the teacher's weights for NaN and infinity, or use a smaller "
        "learning_rate."
    )


def _on_device(value: Tensor, device: torch.device) -> Tensor:
    layout = torch.channels_last if value.dim() == 4 else torch.contiguous_format
    return value.to(device).contiguous(memory_format=layout)


def _state(progress: _Progress) -> State:
    """Everything needed to go on, as plain tensors on the CPU."""
    state: State = {
        "done": torch.tensor(progress.done),
        "generator": progress.generator.get_state(),
        "best_loss": progress.best_loss,
    }
    if progress.best_images is not None:
        state["best_images"] = progress.best_images
    for index, variable in enumerate(progress.variables):
        state[f"variable.{index}"] = variable
        state |= {f"update.{index}.{n}": v for n, v in progress.updates[index].items()}
        state |= {f"schedule.{index}.{n}": v for n, v in progress.schedules[index].items()}
    state |= {f"harvest.{n}": images for n, images in enumerate(progress.harvest)}
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}


def _resume(progress: _Progress, kept: State, frozen: FrozenTeacher) -> None:
    """Put a kept state in place; targets come from the batch's seed."""
    device = frozen.device
    progress.done = int(kept["done"])
    progress.generator.set_state(kept["generator"])
    progress.best_loss = kept["best_loss"].to(device)
    if "best_images" in kept:
        progress.best_images = _on_device(kept["best_images"], device)
    for index in range(len(progress.variables)):
        progress.variables[index] = _on_device(kept[f"variable.{index}"], device)
        for part, prefix in (
            (progress.updates[index], f"update.{index}."),
            (progress.schedules[index], f"schedule.{index}."),
        ):
            for name in part:
                part[name] = _on_device(kept[prefix + name], device)
    names = sorted((n for n in kept if n.startswith("harvest.")), key=lambda n: int(n[8:]))
    progress.harvest = [_on_device(kept[name], device) for name in names]
