"""Everything that decides how one batch goes on, and how it is kept and restored."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from emptyset.inversion.joint_statistics import Moments
from emptyset.monitor import State

_MOMENTS = "moments."


@dataclass
class Progress:
    """One batch on its way.

    Attributes:
        variables: What is optimised.
        updates: State of the update rule of each variable.
        schedules: State of the schedule of each variable.
        generator: Source of everything random in this batch.
        before_context: The source of everything random as ``Method.context`` found it.
        targets: ``(N,)``, ``(N, K)`` or None.
        context: What ``Method.context`` gave for this batch.
        done: Steps done.
        harvest: Images taken on the way [standardised pixel units].
        best_loss: Smallest loss so far, 0-dim.
        best_images: Images of the smallest loss, or None.
        moments: What the batch last caused, for the others; only with joint statistics.
    """

    variables: list[Tensor]
    updates: list[State]
    schedules: list[State]
    generator: torch.Generator
    before_context: Tensor
    targets: Tensor | None
    context: State
    done: int
    harvest: list[Tensor]
    best_loss: Tensor
    best_images: Tensor | None
    moments: Moments = field(default_factory=dict)

    def state(self) -> State:
        """Everything needed to go on, as plain tensors on the CPU."""
        state: State = {
            "done": torch.tensor(self.done),
            "generator": self.generator.get_state(),
            "best_loss": self.best_loss,
        }
        if self.best_images is not None:
            state["best_images"] = self.best_images
        for index, variable in enumerate(self.variables):
            state[f"variable.{index}"] = variable
            state |= {f"update.{index}.{n}": v for n, v in self.updates[index].items()}
            state |= {f"schedule.{index}.{n}": v for n, v in self.schedules[index].items()}
        state |= {f"harvest.{n}": images for n, images in enumerate(self.harvest)}
        state |= as_state(self.moments)
        return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}

    def empty(self) -> None:
        """Let go of everything that ``state`` holds, until ``resume`` brings it back."""
        nothing = torch.empty(0)
        self.variables = [nothing] * len(self.variables)
        self.updates = [dict.fromkeys(state, nothing) for state in self.updates]
        self.schedules = [dict.fromkeys(state, nothing) for state in self.schedules]
        self.harvest, self.best_images, self.moments = [], None, {}

    def resume(self, kept: State, device: torch.device) -> None:
        """Put a kept state in place; targets and context come from the batch's seed."""
        self.done = int(kept["done"])
        self.generator.set_state(kept["generator"])
        self.best_loss = kept["best_loss"].to(device)
        self.moments = {name: value.to(device) for name, value in moments_in(kept).items()}
        if "best_images" in kept:
            self.best_images = on_device(kept["best_images"], device)
        for index in range(len(self.variables)):
            self.variables[index] = on_device(kept[f"variable.{index}"], device)
            for part, prefix in (
                (self.updates[index], f"update.{index}."),
                (self.schedules[index], f"schedule.{index}."),
            ):
                for name in part:
                    part[name] = on_device(kept[prefix + name], device)
        names = sorted((n for n in kept if n.startswith("harvest.")), key=lambda n: int(n[8:]))
        self.harvest = [on_device(kept[name], device) for name in names]


def on_device(value: Tensor, device: torch.device) -> Tensor:
    """The tensor on ``device``, channels last where it has four axes."""
    layout = torch.channels_last if value.dim() == 4 else torch.contiguous_format
    # Always a copy: what is optimised is changed in place, what was kept must not be.
    return value.to(device, copy=True).contiguous(memory_format=layout)


def as_state(moments: Moments) -> State:
    """Moments as a part of a kept state."""
    return {f"{_MOMENTS}{name}": value for name, value in moments.items()}


def moments_in(kept: Mapping[str, Tensor]) -> Moments:
    """The moments that are part of a kept state."""
    return {n.removeprefix(_MOMENTS): v for n, v in kept.items() if n.startswith(_MOMENTS)}
