"""One method at work on one teacher: how a batch starts, moves and ends."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from emptyset.errors import ImagesError
from emptyset.images.low_pass import low_pass
from emptyset.inversion.batch_plan import BatchPlan
from emptyset.inversion.frozen_teacher import FrozenTeacher, Loss
from emptyset.inversion.method import BatchStart, Method, OtherImages
from emptyset.inversion.progress import Progress, on_device
from emptyset.monitor import Monitor, State

# On an accelerator the loss is read, and so waited for, only every so many steps.
_LOOK_EVERY = 25


@dataclass(frozen=True)
class Run:
    """What all batches have in common.

    Attributes:
        method: What is optimised, and how.
        frozen: The copy of the teacher.
        loss: The method's loss on it.
        plan: The batches.
        monitor: Hears of progress, keeps and restores states.
    """

    method: Method
    frozen: FrozenTeacher
    loss: Loss
    plan: BatchPlan
    monitor: Monitor

    def key(self, batch: int) -> str:
        """Under which the batch's state is kept."""
        return f"{self.method.name}.batch{batch:05d}"

    # Start -----------------------------------------------------------------------------------

    def start(self, batch: int, earlier: OtherImages) -> Progress:
        """A batch before its first step; everything random follows from its seed."""
        method, frozen, plan = self.method, self.frozen, self.plan
        generator = torch.Generator().manual_seed(plan.seeds[batch])
        targets = None if method.targets is None else method.targets(generator, plan.size)
        first = method.canvas.start((plan.size, *frozen.shape), generator)
        variables = [on_device(value, frozen.device) for value in first]
        before_context = generator.get_state()
        return Progress(
            variables=variables,
            updates=[g.update.start(v) for g, v in zip(method.groups, variables, strict=True)],
            schedules=[g.schedule.start(frozen.device) for g in method.groups],
            before_context=before_context,
            context=self._context(generator, earlier),
            generator=generator,
            targets=None if targets is None else targets.to(frozen.device),
            done=0,
            harvest=[],
            best_loss=torch.tensor(math.inf, device=frozen.device),
            best_images=None,
        )

    def targets(self, batch: int) -> Tensor | None:
        """What the images of a batch are made for, ``(N,)`` or ``(N, K)``, on the CPU."""
        generator = torch.Generator().manual_seed(self.plan.seeds[batch])
        return (
            None if self.method.targets is None else self.method.targets(generator, self.plan.size)
        )

    def context_again(self, progress: Progress, earlier: OtherImages) -> None:
        """Make the context anew beside other images, from the same random numbers."""
        generator = torch.Generator()
        generator.set_state(progress.before_context)
        progress.context = self._context(generator, earlier)

    def _context(self, generator: torch.Generator, earlier: OtherImages) -> State:
        if self.method.context is None:
            return {}
        shape = (self.plan.size, *self.frozen.shape)
        found = self.method.context(BatchStart(self.frozen.look, earlier, generator, shape))
        return {name: value.to(self.frozen.device) for name, value in found.items()}

    # Steps -----------------------------------------------------------------------------------

    def go_on(self, progress: Progress, batch: int, until: int, elsewhere: int) -> None:
        """Step after step, up to ``until``.

        Args:
            progress: Changed in place.
            batch: Its number.
            until: Steps done at the end.
            elsewhere: Steps done on all other batches, to tell the progress of the whole.

        Raises:
            ImagesError: If the loss is not finite.
        """
        method, batches = self.method, self.plan.batches
        last = math.nan
        for step in range(progress.done, until):
            value = self.step(progress, step)
            if self.frozen.device.type == "cpu" or (step + 1) % _LOOK_EVERY == 0:
                last = self._finite(value, batch, step)
            detail = f"batch {batch + 1} of {batches}, loss {last:.4g}"
            done = elsewhere + step + 1
            self.monitor.advance(method.name, done, batches * method.steps, detail)
            if step + 1 < until:
                self.monitor.keep(self.key(batch), progress.state)

    def step(self, progress: Progress, step: int) -> Tensor:
        """One step; gives the loss before it."""
        method, device = self.method, self.frozen.device
        size = len(progress.variables[0])
        drawn = {} if method.draw is None else method.draw(step, progress.generator, size)
        drawn = progress.context | {n: value.to(device) for n, value in drawn.items()}
        variables = [v.detach().requires_grad_() for v in progress.variables]
        value, moments = self.loss(variables, progress.targets, drawn)
        # A teacher that is not asked in this step keeps its earlier ones.
        progress.moments = progress.moments | moments
        # For what is optimised only: the teacher's copy keeps no trace.
        gradients = torch.autograd.grad(value, variables)
        value = value.detach()
        if method.keep_best and step >= method.best_from:
            self._remember_best(progress, value)
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
            progress.harvest.append(self.rendered(progress.variables).clone())
        return value

    @torch.no_grad()
    def rendered(self, variables: list[Tensor]) -> Tensor:
        """The images that the variables stand for [standardised pixel units]."""
        return self.method.canvas.render(variables)

    @torch.no_grad()
    def _remember_best(self, progress: Progress, value: Tensor) -> None:
        images = self.rendered(progress.variables)
        if progress.best_images is None:
            progress.best_images = images.clone()
        better = value < progress.best_loss
        progress.best_loss = torch.where(better, value, progress.best_loss)
        progress.best_images = torch.where(better, images, progress.best_images)

    # End -------------------------------------------------------------------------------------

    def finished(self, progress: Progress, batch: int) -> State:
        """The images of a batch that had all its steps: ``images.0`` and on, and ``targets``.

        Raises:
            ImagesError: If an image is not finite.
        """
        method = self.method
        if method.snapshots:
            harvest = progress.harvest
        elif method.keep_best and progress.best_images is not None:
            harvest = [progress.best_images]
        else:
            harvest = [self.rendered(progress.variables)]
        found: State = {}
        targets = progress.targets
        for number, images in enumerate(harvest):
            if method.finish is not None:
                images, targets = method.finish(images, progress.targets, progress.generator)
            if method.low_pass is not None:
                images = low_pass(images, method.low_pass)
            ready = self.frozen.units.to_teacher(images).detach().cpu().contiguous()
            if not bool(torch.isfinite(ready).all()):
                raise self._not_finite(batch, progress.done)
            found[f"images.{number}"] = ready
        if targets is not None:
            found["targets"] = targets.cpu()
        return found

    def as_earlier(self, found: State) -> list[tuple[Tensor, Tensor | None]]:
        """Finished images as the context of another batch sees them."""
        images = [value for name, value in found.items() if name.startswith("images.")]
        return [(self.frozen.units.from_teacher(x), found.get("targets")) for x in images]

    def _finite(self, value: Tensor, batch: int, step: int) -> float:
        number = value.item()
        if not math.isfinite(number):
            raise self._not_finite(batch, step + 1)
        return number

    def _not_finite(self, batch: int, step: int) -> ImagesError:
        return ImagesError(
            f"{self.method.name}: the loss or the images are not finite after step {step} of "
            f"batch {batch + 1}. Check the teacher's weights for NaN and infinity, or use a "
            "smaller learning_rate."
        )


def is_finished(state: State) -> bool:
    """Whether a kept state is that of finished images."""
    return "images.0" in state
