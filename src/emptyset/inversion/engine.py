"""Runs an inversion method: batch after batch, resumable, the teacher untouched.

What makes it fast: the teacher's weights carry no gradients, tensors are channels-last, the
teacher runs in bfloat16 where the hardware is faster so, one pass gives all statistics of a layer
(``losses/layer_statistics.py``), the objective is compiled where that pays, and no step waits for
the device.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from emptyset.images.image_set import Batch, ImageSet
from emptyset.inversion.batch_norm_needed import require_batch_norm
from emptyset.inversion.batch_plan import BatchPlan, plan_batches
from emptyset.inversion.compilation import (
    Execution,
    compiler_found,
    has_fast_bfloat16,
    worth_compiling,
)
from emptyset.inversion.frozen_teacher import FrozenTeacher
from emptyset.inversion.method import Method
from emptyset.inversion.run import Run
from emptyset.inversion.turns import jointly, separately, set_moments
from emptyset.monitor import SILENT, Monitor
from emptyset.teachers.teacher import Teacher


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
    """Make exactly ``count`` images, in memory.

    Args, raises: as ``invert_into``.
    """
    batches: list[Batch] = []
    entry = invert_into(
        batches.append,
        method,
        teacher,
        count,
        seed=seed,
        settings=settings,
        monitor=monitor,
        execution=execution,
    )
    return gathered(batches, entry)


def gathered(batches: Sequence[Batch], entry: dict[str, Any]) -> ImageSet:
    """One set of all batches, with its history."""
    images = torch.cat([batch.images for batch in batches])
    targets = [batch.targets for batch in batches if batch.targets is not None]
    return ImageSet(images, torch.cat(targets) if targets else None, history=(entry,))


def invert_into(
    take: Callable[[Batch], None],
    method: Method,
    teacher: Teacher,
    count: int,
    *,
    seed: int,
    settings: Mapping[str, Any],
    monitor: Monitor = SILENT,
    execution: Execution | None = None,
) -> dict[str, Any]:
    """Make exactly ``count`` images and hand them on as soon as they are finished.

    Args:
        take: Called with every piece of a batch, in order: images ``(N, C, H, W)`` [teacher's
            normalised units] and their targets, on the CPU.
        method: What to optimise, and how.
        teacher: Judges the images; it is copied, never changed.
        count: Number of images, at least 1.
        seed: Seed of everything random.
        settings: The method's settings, for the history (JSON data).
        monitor: Hears of progress, keeps and restores states.
        execution: How to run the teacher; None: decided here (and kept).

    Returns:
        The entry for the history of the images.

    Raises:
        UnsupportedModelError: If the method needs BatchNorm and the teacher has none.
        ImagesError: If the loss or the images stop being finite.
    """
    if method.needs_batch_norm:
        require_batch_norm(teacher, method.name)
    harvests = max(1, len(method.snapshots))
    plan = plan_batches(-(-count // harvests), method.batch_size, seed=seed)
    if plan.batches == 1:  # it is the whole set
        method = replace(method, joint_steps=None)
    elif method.joint_steps is not None:
        # Losses of different rounds are measured beside different images of the others, which in
        # turn are matched to the last images, not to those of the smallest loss.
        method = replace(method, keep_best=False)
    frozen = FrozenTeacher(teacher)
    others = [FrozenTeacher(other, frozen.device) for other in method.others]
    execution = execution or _decide(method, frozen, plan, monitor)
    wanted = count
    with ExitStack() as hooks:
        loss = hooks.enter_context(frozen.loss_of(method, execution, others))
        run = Run(method, frozen, loss, plan, monitor)
        if execution.compiled and not _works(run, others):
            hooks.close()
            execution = replace(execution, compiled=False)
            loss = hooks.enter_context(frozen.loss_of(method, execution, others))
            run = Run(method, frozen, loss, plan, monitor)
        monitor.keep(f"{method.name}.execution", execution.state, final=True)
        made = separately(run) if method.joint_steps is None else jointly(run, others)
        for batch, found in enumerate(made):
            kept = plan.kept_of(batch)
            for number in range(harvests):
                # The last harvests give up what is too much.
                here = min(kept, wanted)
                wanted -= here
                if here:
                    targets = found["targets"][:here] if "targets" in found else None
                    take(Batch(found[f"images.{number}"][:here], targets))
    return {
        "stage": "synthesize",
        "method": method.name,
        "settings": dict(settings),
        "seed": seed,
        "teacher": teacher.weights_hash,
        "teacher_name": teacher.public_name,
        "mean": list(teacher.input.mean),
        "std": list(teacher.input.std),
        "count": count,
        "batch_size": plan.size,
        "compiled": execution.compiled,
        "dtype": str(execution.dtype).removeprefix("torch."),
        "assumed_pixel_mean": list(frozen.units.mean),
        "assumed_pixel_std": list(frozen.units.std),
    }


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


def _works(run: Run, others: Sequence[FrozenTeacher]) -> bool:
    """Whether the compiled objective runs; tried on a step that is thrown away."""
    try:
        progress = run.start(0, ())
        if run.method.joint_steps is not None:
            progress.context |= set_moments(run, others).elsewhere(0)
        run.step(progress, 0)
    # Whatever a compiler may raise. An error of the method itself comes again without it.
    except Exception as error:
        run.monitor.note(
            f"{run.method.name}: torch.compile cannot compile the objective "
            f"({type(error).__name__}), so it runs as it is and takes about one and a half times "
            "as long."
        )
        return False
    return True
