"""BatchNorm folded, frozen or turned into a depthwise convolution computes the same."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from emptyset.errors import UnsupportedModelError
from emptyset.graph.batch_norm import fold, freeze, to_depthwise
from emptyset.graph.capture import capture
from emptyset.graph.operators import name_of
from emptyset.graph.student import prepare
from emptyset.teachers.teacher import Teacher


class Twice(nn.Module):
    """One convolution and one BatchNorm, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.norm(self.conv(x)).relu())).mean((2, 3))


class ThroughReshape(nn.Module):
    """A linear on tokens, its BatchNorm on flat rows (as in LeViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 5, bias=False), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.linear(x.flatten(2).transpose(1, 2))
        return self.norm(tokens.flatten(0, 1)).reshape_as(tokens).mean(1)


FOLDED = {
    "convolution": (nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5)), 1),
    "with a bias": (nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)), 1),
    "grouped": (nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6)), 1),
    "without weight": (nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, affine=False)), 1),
    "linear": (nn.Sequential(nn.Flatten(), nn.Linear(240, 5), nn.BatchNorm1d(5)), 1),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(3, 5, 2, 2), nn.BatchNorm2d(5)), 1),
    "linear through a reshape": (ThroughReshape(), 1),
    "after a relu": (nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.BatchNorm2d(5)), 0),
    "grouped transposed": (
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 6, 2, groups=2), nn.BatchNorm2d(6)),
        0,
    ),
    "called twice": (Twice(), 0),
}


def batch_norms(program: fx.GraphModule) -> int:
    return sum(name_of(node) == "batch_norm" for node in program.graph.nodes)


@pytest.fixture
def compared(teacher_of: Callable[..., Teacher]) -> Callable[..., tuple[fx.GraphModule, float]]:
    def run(
        module: nn.Module, rewrite: Callable[[fx.GraphModule], int]
    ) -> tuple[fx.GraphModule, float]:
        """The rewritten graph and its largest difference, on a network with negative gammas."""
        teacher = teacher_of(module)
        for norm in module.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.affine:
                norm.weight[0] *= -1
        program, images = capture(module, teacher.example()), torch.randn(5, 3, 8, 10)
        count = rewrite(program)
        program.counted = count
        with torch.no_grad():
            return program, (program(images) - module(images)).abs().max().item()

    return run


@pytest.mark.parametrize("kind", FOLDED)
def test_folding_takes_in_what_it_can_and_changes_nothing(kind: str, compared) -> None:
    module, folds = FOLDED[kind]
    before = batch_norms(capture(module.eval(), torch.zeros(2, 3, 8, 10)))
    program, gap = compared(module, fold)
    assert gap < 1e-5
    assert program.counted == folds
    assert batch_norms(program) == before - folds


@pytest.mark.parametrize("kind", FOLDED)
def test_freezing_leaves_weights_alone_and_computes_the_same(kind: str, compared) -> None:
    module, _ = FOLDED[kind]
    program, gap = compared(module, freeze)
    assert gap < 1e-5
    assert batch_norms(program) == 0
    state = program.state_dict()
    for name, value in module.named_parameters():
        if name.endswith("weight") and value.dim() > 1:
            assert torch.equal(state[name], value)


def test_a_batch_norm_that_nothing_absorbs_becomes_depthwise(compared) -> None:
    module = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 5, 3))
    program, gap = compared(module, to_depthwise)
    assert gap < 1e-5
    depthwise = next(n for n in program.graph.nodes if n.meta.get("was_batch_norm"))
    assert depthwise.args[6] == 3


@pytest.mark.parametrize("choice", ["fold", "frozen"])
def test_a_batch_norm_without_statistics_is_refused(
    choice: str, teacher_of: Callable[..., Teacher]
) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, track_running_stats=False), nn.Flatten()
    )
    with pytest.raises(UnsupportedModelError, match=r"^1: this BatchNorm has no stored statistics"):
        prepare(teacher_of(module), "w8a8", plan="every_layer", batch_norm=choice)
