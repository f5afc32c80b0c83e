"""Runs an inversion method: batch after batch, resumable, the teacher untouched.

What makes it fast: the teacher's weights carry no gradients, tensors are channels-last, the
teacher runs in bfloat16 where the hardware multiplies it, one pass gives all statistics of a layer
(``losses/layer_statistics.py``), the objective is compiled where that pays, and no step waits for
the device.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from emptyset.errors import ImagesError, UnsupportedModelError
from emptyset.images.image_set import ImageSet
from emptyset.images.low_pass import low_pass
from emptyset.inversion.batch_plan import BatchPlan, plan_batches
from emptyset.inversion.compilation import (
    Execution,
    compiler_found,
    has_fast_bfloat16,
    worth_compiling,
)
from emptyset.inversion.frozen_teacher import FrozenTeacher, Loss
from emptyset.inversion.method import BatchStart, Method
from emptyset.inversion.progress import Progress, on_device
from emptyset.monitor import SILENT, Monitor, State
from emptyset.teachers.teacher import Teacher

# On an accelerator the loss is read, and so waited for, only every so many steps.
_LOOK_EVERY = 25


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
    others = [FrozenTeacher(other, frozen.device) for other in method.others]
    execution = execution or _decide(method, frozen, plan, monitor)
    images: list[Tensor] = []
    targets: list[Tensor] = []
    earlier: list[tuple[Tensor, Tensor | None]] = []
    with ExitStack() as hooks:
        loss = hooks.enter_context(frozen.loss_of(method, execution, others))
        if execution.compiled and not _works(method, frozen, loss, plan, monitor):
            hooks.close()
            execution = replace(execution, compiled=False)
            loss = hooks.enter_context(frozen.loss_of(method, execution, others))
        monitor.keep(f"{method.name}.execution", execution.state, final=True)
        for batch in range(plan.batches):
            found = _batch(method, frozen, loss, plan, batch, earlier, monitor)
            kept = plan.kept_of(batch)
            if method.context is not None:
                earlier += _as_earlier(found, frozen)
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
        _step(method, loss, _start(method, frozen, plan, 0, ()), 0, frozen)
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
    earlier: Sequence[tuple[Tensor, Tensor | None]],
    monitor: Monitor,
) -> State:
    """The finished images of one batch: ``images.0`` and on, and ``targets``."""
    key = f"{method.name}.batch{batch:05d}"
    kept = monitor.restore(key)
    if kept is not None and "images.0" in kept:
        return kept
    progress = _start(method, frozen, plan, batch, earlier)
    if kept is not None:
        progress.resume(kept, frozen.device)
    last = math.nan
    for step in range(progress.done, method.steps):
        value = _step(method, loss, progress, step, frozen)
        if frozen.device.type == "cpu" or (step + 1) % _LOOK_EVERY == 0:
            last = _finite(value, method, batch, step)
        done = batch * method.steps + step + 1
        detail = f"batch {batch + 1} of {plan.batches}, loss {last:.4g}"
        monitor.advance(method.name, done, plan.batches * method.steps, detail)
        if step + 1 < method.steps:
            monitor.keep(key, progress.state)
    found = _finished(method, frozen, progress, batch)
    monitor.keep(key, lambda: found, final=True)
    return found


def _as_earlier(found: State, frozen: FrozenTeacher) -> list[tuple[Tensor, Tensor | None]]:
    """A finished batch as later ones see it; it stays on the CPU."""
    names = [name for name in found if name.startswith("images.")]
    return [(frozen.units.from_teacher(found[n]), found.get("targets")) for n in names]


def _start(
    method: Method,
    frozen: FrozenTeacher,
    plan: BatchPlan,
    batch: int,
    earlier: Sequence[tuple[Tensor, Tensor | None]],
) -> Progress:
    generator = torch.Generator().manual_seed(plan.seeds[batch])
    targets = None if method.targets is None else method.targets(generator, plan.size)
    first = method.canvas.start((plan.size, *frozen.shape), generator)
    variables = [on_device(value, frozen.device) for value in first]
    context: State = {}
    if method.context is not None:
        shape = (plan.size, *frozen.shape)
        context = method.context(BatchStart(frozen.look, earlier, generator, shape))
    return Progress(
        variables=variables,
        updates=[g.update.start(v) for g, v in zip(method.groups, variables, strict=True)],
        schedules=[g.schedule.start(frozen.device) for g in method.groups],
        generator=generator,
        targets=None if targets is None else targets.to(frozen.device),
        context={name: value.to(frozen.device) for name, value in context.items()},
        done=0,
        harvest=[],
        best_loss=torch.tensor(math.inf, device=frozen.device),
        best_images=None,
    )


def _step(
    method: Method, loss: Loss, progress: Progress, step: int, frozen: FrozenTeacher
) -> Tensor:
    """One step; gives the loss before it."""
    size = len(progress.variables[0])
    drawn = {} if method.draw is None else method.draw(step, progress.generator, size)
    drawn = progress.context | {n: value.to(frozen.device) for n, value in drawn.items()}
    variables = [v.detach().requires_grad_() for v in progress.variables]
    value = loss(variables, progress.targets, drawn)
    # For what is optimised only: the teacher's copy keeps no trace.
    gradients = torch.autograd.grad(value, variables)
    value = value.detach()
    if method.keep_best and step >= method.best_from:
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
def _remember_best(method: Method, progress: Progress, value: Tensor) -> None:
    images = _rendered(method, progress)
    if progress.best_images is None:
        progress.best_images = images.clone()
    better = value < progress.best_loss
    progress.best_loss = torch.where(better, value, progress.best_loss)
    progress.best_images = torch.where(better, images, progress.best_images)


@torch.no_grad()
def _rendered(method: Method, progress: Progress) -> Tensor:
    return method.canvas.render(progress.variables)


def _finished(method: Method, frozen: FrozenTeacher, progress: Progress, batch: int) -> State:
    if method.snapshots:
        harvest = progress.harvest
    elif method.keep_best and progress.best_images is not None:
        harvest = [progress.best_images]
    else:
        harvest = [_rendered(method, progress)]
    found: State = {}
    targets = progress.targets
    for number, images in enumerate(harvest):
        if method.finish is not None:
            images, targets = method.finish(images, progress.targets, progress.generator)
        if method.low_pass is not None:
            images = low_pass(images, method.low_pass)
        ready = frozen.units.to_teacher(images).detach().cpu().contiguous()
        if not bool(torch.isfinite(ready).all()):
            raise _not_finite(method, batch, progress.done)
        found[f"images.{number}"] = ready
    if targets is not None:
        found["targets"] = targets.cpu()
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
