"""Corrections of layers whose outputs are no ``(N, C, H, W)``: every channel gets its own value."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from emptyset.graph.operators import layer_path, weighted_layers
from emptyset.graph.student import Student, prepare
from emptyset.registry import refiners


class ChannelsLast(nn.Module):
    """Linears over ``(N, H, W, C)``, the first without bias and with as many outputs as rows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 6, 1), nn.Linear(6, 8, bias=False)
        self.second, self.head = nn.Linear(8, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x)).permute(0, 2, 3, 1)
        return self.head(F.relu(self.second(F.relu(self.first(x)))).mean((1, 2)))


class Windows(nn.Module):
    """Linears over windows of ``(2, 3)`` pixels, which lie along the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 4, 1), nn.Linear(4, 9)
        self.second, self.head = nn.Linear(9, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        count, channels, height, width = x.shape
        x = x.view(count, channels, height // 2, 2, width // 3, 3).permute(0, 2, 4, 3, 5, 1)
        x = self.second(F.relu(self.first(x.reshape(-1, 2, 3, channels))))
        return self.head(F.relu(x).reshape(count, -1, 7).mean(1))


class Convolutions(nn.Module):
    """Convolutions of one or three dimensions, the first without bias."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        conv = nn.Conv1d if dimensions == 1 else nn.Conv3d
        self.first = conv(3 if dimensions == 1 else 1, 6, 3, padding=1, bias=False)
        self.second, self.head = conv(6, 7, 3), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2) if self.first.weight.dim() == 3 else x.unsqueeze(1)
        return self.head(F.relu(self.second(F.relu(self.first(x)))).flatten(2).mean(2))


NETS: dict[str, Callable[[], nn.Module]] = {
    "channels last": ChannelsLast,
    "windows": Windows,
    "conv1d": lambda: Convolutions(1),
    "conv3d": lambda: Convolutions(3),
}


class Outputs(fx.Interpreter):
    """Runs a program and keeps the output of every layer."""

    def __init__(self, program: fx.GraphModule) -> None:
        super().__init__(program)
        self.kept: dict[str, Tensor] = {}
        self._layers = weighted_layers(program)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self._layers:
            self.kept[layer_path(n)] = value
        return value


def outputs(student: Student, x: Tensor) -> dict[str, Tensor]:
    """``(C, n)`` double: all values of every channel, by layer."""
    interpreter = Outputs(student.program)
    interpreter.run(x)
    rows = {}
    for name, values in interpreter.kept.items():
        linear = isinstance(student.teacher.module.get_submodule(name), nn.Linear)
        rows[name] = values.double().movedim(-1 if linear else 1, 0).flatten(1)
    return rows


def calibrated(small: Any, module: nn.Module, plan: str) -> Student:
    student = prepare(small.teacher_of(module), "w3a8", plan=plan)
    refine("calibrate", student, small.images(24))
    return student


def refine(name: str, student: Student, shown: Any, **options: Any) -> None:
    entry = refiners.get(name)
    entry.make(entry.config(**options)).refine(student, shown, seed=0)


def gaps(found: dict[str, Tensor], wanted: dict[str, Tensor], *, of: str) -> dict[str, float]:
    """Largest gap of a channel's ``mean`` or ``std``, in the widest channel's deviations."""
    measured = {}
    for name, values in wanted.items():
        one, other = (getattr(torch, of)(rows, 1) for rows in (found[name], values))
        measured[name] = ((one - other).abs().max() / values.std(1).max()).item()
    return measured


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("plan", ["integer", "every_layer"])
def test_means_are_met_in_every_layer(plan: str, net: str, small: Any) -> None:
    student, shown = calibrated(small, NETS[net](), plan), small.images(24)
    with student.float_mode():
        wanted = outputs(student, shown.images)
    before = gaps(outputs(student, shown.images), wanted, of="mean")
    refine("bias_correction", student, shown, statistics="empirical", batch_size=7)
    after = gaps(outputs(student, shown.images), wanted, of="mean")
    # In plan `integer` a bias is a whole number of steps.
    limit = 0.02 if plan == "integer" else 1e-5
    assert max(before.values()) > 0.03
    assert max(after.values()) < limit, after
    with student.float_mode():
        expected = student.teacher.module(shown.images)
        torch.testing.assert_close(student(shown.images), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("net", NETS)
def test_deviations_are_met_too(net: str, small: Any) -> None:
    student, shown = calibrated(small, NETS[net](), "every_layer"), small.images(24)
    with student.float_mode():
        wanted = outputs(student, shown.images)
    before = gaps(outputs(student, shown.images), wanted, of="std")
    options = {"layers": "all", "largest_factor": 100.0, "batch_size": 7}
    refine("batch_norm_reestimation", student, shown, **options)
    after = outputs(student, shown.images)
    assert max(before.values()) > 0.01
    for of in ("mean", "std"):
        assert max(gaps(after, wanted, of=of).values()) < 1e-5


def test_a_saved_correction_gives_every_output_its_bias_again(small: Any) -> None:
    student, shown = calibrated(small, ChannelsLast(), "integer"), small.images(24)
    refine("bias_correction", student, shown, statistics="empirical")
    again = prepare(student.teacher, "w3a8", plan="integer")
    again.load_state_dict(student.state_dict())
    assert again.program.get_submodule("first").bias.shape == (8,)
    assert torch.equal(again(shown.images), student(shown.images))


class Rows(nn.Module):
    """A linear over the columns of an image that has as many of them as channels, and a reader."""

    def __init__(self, small: Any) -> None:
        super().__init__()
        self.block, self.columns = small.block(3, 12, 1), nn.Linear(12, 7)
        self.last, self.head = nn.Linear(12, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.block(x))
        columns = self.columns(x).mean((2, 3))
        last = self.last(x.permute(0, 2, 3, 1))
        return self.head(F.relu(last).mean((1, 2))) + columns[:, :5]


def test_means_of_channels_are_not_taken_for_those_of_columns(small: Any) -> None:
    student, shown = calibrated(small, Rows(small), "every_layer"), small.images(24)
    refine("bias_correction", student, shown, statistics="analytic")
    net, state = student.teacher.module, student.program.state_dict()
    assert torch.equal(state["columns.bias"], net.columns.bias)
    # Independent route: what the weight's rounding makes of normal values behind the ReLU.
    norm, error = net.block[1], student.quantizers["last.weight"](net.last.weight) - net.last.weight
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(50000, 12, generator=generator)
    spread = norm.weight.abs() * (norm.running_var / (norm.running_var + norm.eps)).sqrt()
    shift = error @ F.relu(norm.bias + spread * noise).mean(0)
    moved = net.last.bias - state["last.bias"]
    torch.testing.assert_close(moved, shift, atol=0.02 * shift.abs().max().item(), rtol=0)
