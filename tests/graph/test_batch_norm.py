"""BatchNorm folded, frozen or turned into a depthwise convolution computes the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations

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


class Layered(nn.Module):
    """A first convolution, then whatever the test does with these parts."""

    def __init__(self, forward: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.parts, self.then = nn.ModuleDict(parts), forward
        self.first = nn.Conv2d(3, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.then(self.first(x).relu(), **self.parts)
        return out.flatten(2).mean(2) if out.dim() > 2 else out


def conv(outputs: int = 6, **options: Any) -> nn.Module:
    return nn.Conv2d(6, outputs, 3, padding=1, **options)


def norms(width: int, *names: str) -> dict[str, nn.Module]:
    return {name: nn.BatchNorm2d(width) for name in names}


def other_reader(x: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
    y = conv(x)
    return norm(y).relu() + y


def two_norms(x: Tensor, conv: nn.Module, one: nn.Module, two: nn.Module) -> Tensor:
    y = conv(x)
    return one(y).relu() - two(y).relu()


def one_call_read_twice(x: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
    y = conv(norm(conv(x)).relu())
    return norm(y) + y


def in_a_mask(x: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
    y = conv(x)
    return torch.where(y > 0, norm(y), 0.0)


def shared_bias(x: Tensor, one: nn.Module, two: nn.Module, **norms: nn.Module) -> Tensor:
    y = norms["a"](one(x)).relu()
    return norms["b"](F.conv2d(y, two.weight, one.bias))


def bias_of_the_image(x: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
    return norm(F.conv2d(x, conv.weight, conv.bias * x.mean()))


def rows(x: Tensor) -> Tensor:
    """``(N, 8, 60)``: tokens of a column each."""
    return x.permute(0, 2, 1, 3).flatten(2)


# What torchao would fold, wrongly, and what only looks as if it could be folded.
LEFT = {
    "also read unnormalised": Layered(other_reader, conv=conv(), norm=nn.BatchNorm2d(6)),
    "two BatchNorms on one convolution": Layered(two_norms, conv=conv(5), **norms(5, "one", "two")),
    "two BatchNorms after two calls": Layered(
        lambda x, conv, one, two: two(conv(one(conv(x)).relu())),
        conv=conv(), **norms(6, "one", "two"),
    ),
    "called twice, once read by others": Layered(
        one_call_read_twice, conv=conv(), norm=nn.BatchNorm2d(6)
    ),
    "its sign is read too": Layered(in_a_mask, conv=conv(5), norm=nn.BatchNorm2d(5)),
    "a weight of the image": Layered(
        lambda x, conv, norm: norm(F.conv2d(x, conv.weight * x.mean(), conv.bias)),
        conv=conv(5), norm=nn.BatchNorm2d(5),
    ),
    "a bias of the image": Layered(bias_of_the_image, conv=conv(5), norm=nn.BatchNorm2d(5)),
    "a linear read twice": Layered(
        lambda x, linear, norm: other_reader(x.mean((2, 3)), linear, norm),
        linear=nn.Linear(6, 5), norm=nn.BatchNorm1d(5),
    ),
    "as many tokens as channels": Layered(
        lambda x, linear, norm: norm(linear(rows(x))),
        linear=nn.Linear(60, 8), norm=nn.BatchNorm1d(8),
    ),
    "fewer tokens than channels": Layered(
        lambda x, linear, norm: norm(linear(rows(x))),
        linear=nn.Linear(60, 9), norm=nn.BatchNorm1d(8),
    ),
    "channels in another order": Layered(
        lambda x, linear, norm: norm(
            linear(x.mean((2, 3))).unflatten(1, (3, 2)).transpose(1, 2).flatten(1)
        ),
        linear=nn.Linear(6, 6), norm=nn.BatchNorm1d(6),
    ),
    "depthwise transposed": Layered(
        lambda x, conv, norm: norm(conv(x)),
        conv=nn.ConvTranspose2d(6, 6, 2, 2, groups=6, bias=False), norm=nn.BatchNorm2d(6),
    ),
}  # fmt: skip

FOLDED = {
    "convolution": (nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5)), 1),
    "with a bias": (nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)), 1),
    "grouped": (nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6)), 1),
    "without weight": (nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, affine=False)), 1),
    "linear": (nn.Sequential(nn.Flatten(), nn.Linear(240, 5), nn.BatchNorm1d(5)), 1),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(3, 5, 2, 2), nn.BatchNorm2d(5)), 1),
    "linear through a reshape": (ThroughReshape(), 1),
    "a computed weight": (
        nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 5, 3)), nn.BatchNorm2d(5)), 1
    ),
    "after a relu": (nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.BatchNorm2d(5)), 0),
    "grouped transposed": (
        nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 6, 2, groups=2), nn.BatchNorm2d(6)
        ),
        1,
    ),
    "called twice": (Twice(), 2),
    "two in a row": (nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.BatchNorm2d(5)), 2),
    "a bias shared by two layers": (
        Layered(shared_bias, one=conv(5), two=nn.Conv2d(5, 5, 2), **norms(5, "a", "b")), 2
    ),
    "tokens moved behind the channels": (
        Layered(
            lambda x, linear, norm: norm(linear(rows(x)).transpose(1, 2)),
            linear=nn.Linear(60, 9), norm=nn.BatchNorm1d(9),
        ),
        1,
    ),
    "convolution through a reshape": (
        Layered(
            lambda x, conv, norm: norm(conv(x).flatten(2)), conv=conv(5), norm=nn.BatchNorm1d(5)
        ),
        1,
    ),
} | {kind: (module, 0) for kind, module in LEFT.items()}  # fmt: skip


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


@pytest.mark.parametrize("plan", ["integer", "edges_8bit"])
@pytest.mark.parametrize("kind", ["grouped transposed", "called twice", *LEFT])
def test_what_folding_left_is_not_folded_later(
    kind: str, plan: str, teacher_of: Callable[..., Teacher]
) -> None:
    module, _ = FOLDED[kind]
    student, images = prepare(teacher_of(module), "w4a4", plan=plan), torch.randn(5, 3, 8, 10)
    with student.float_mode():
        torch.testing.assert_close(student(images), module(images), atol=1e-5, rtol=1e-5)


def test_calls_of_one_batch_norm_that_becomes_depthwise_share_its_weight(teacher_of) -> None:
    module = LEFT["called twice, once read by others"]
    student = prepare(teacher_of(module), "w4a4")
    layers = [layer for layer in student.layers() if layer.bits.role == "batch_norm"]
    assert [layer.weight_quantizer for layer in layers] == ["parts.norm.depthwise.weight"] * 2


@pytest.mark.parametrize("choice", ["fold", "frozen"])
def test_a_batch_norm_without_statistics_is_refused(
    choice: str, teacher_of: Callable[..., Teacher]
) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, track_running_stats=False), nn.Flatten()
    )
    with pytest.raises(UnsupportedModelError, match=r"^1: this BatchNorm has no stored statistics"):
        prepare(teacher_of(module), "w8a8", plan="every_layer", batch_norm=choice)
