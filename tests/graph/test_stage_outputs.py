"""Stages end where the size of the feature map changes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.graph.residual_bodies import Tapped
from emptyset.graph.stage_outputs import stage_outputs
from emptyset.graph.student import prepare
from emptyset.teachers.teacher import InputSpec, Teacher


class Stages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.down, self.last = nn.Conv2d(4, 5, 3, 2, 1), nn.Conv2d(5, 6, 3, padding=1)
        self.linear = nn.Linear(6, 3)

    def maps(self, x: Tensor) -> list[Tensor]:
        x = F.relu(self.stem(x))
        first = F.relu(x + self.again(x))
        second = F.relu(self.last(F.relu(self.down(first))))
        return [first, second]

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.maps(x)[-1].mean((2, 3)))


def teacher() -> Teacher:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Stages().requires_grad_(False).eval()
    return Teacher("test", module, InputSpec((3, 8, 10), (0.5,) * 3, (0.25,) * 3))


def test_each_size_of_map_gives_the_last_blocks_output() -> None:
    network = teacher()
    images = torch.randn(2, 3, 8, 10, generator=torch.Generator().manual_seed(1))
    for plan in ("every_layer", "integer"):
        student = prepare(network, "w8a8", plan=plan)
        ends = stage_outputs(student, most_positions=80)
        with student.float_mode():
            logits, found = Tapped(student.program, ends)(images)
        for ours, theirs in zip(found, network.module.maps(images), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logits, network.module(images), atol=1e-5, rtol=1e-5)


def test_larger_maps_than_asked_for_are_left_out() -> None:
    student = prepare(teacher(), "w8a8", plan="every_layer")
    assert len(stage_outputs(student, most_positions=79)) == 1
    assert stage_outputs(student, most_positions=19) == []
