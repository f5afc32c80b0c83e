"""Operators in plainer words: the same values, in a form that plans and runtimes know."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from emptyset.errors import CaptureError
from emptyset.graph.capture import capture
from emptyset.graph.operators import name_of

SHAPE = (3, 8, 10)


class Call(nn.Module):
    """One function of the image."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def captured(module: nn.Module, shape: tuple[int, ...] = SHAPE) -> fx.GraphModule:
    """The captured program, which gives what the module gives for another number of images."""
    program = capture(module.eval(), torch.zeros(2, *shape))
    images = torch.randn(5, *shape)
    with torch.no_grad():
        torch.testing.assert_close(program(images), module(images), atol=1e-6, rtol=1e-5)
    return program


def names(program: fx.GraphModule) -> list[str]:
    return [name for node in program.graph.nodes if (name := name_of(node))]


def overloads(program: fx.GraphModule) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize(
    ("layer", "shape", "found"),
    [
        (nn.Conv1d(8, 6, 4, padding="same"), (8, 10), ["pad", "conv1d"]),
        (nn.Conv2d(3, 6, (4, 5), padding="same", dilation=(3, 2)), SHAPE, ["pad", "conv2d"]),
        (nn.Conv2d(3, 6, 3, padding="same", groups=3, bias=False), SHAPE, ["conv2d"]),
        (nn.Conv2d(3, 6, (2, 3), (2, 3), padding="valid"), SHAPE, ["conv2d"]),
        (nn.Conv3d(3, 6, (2, 3, 4), padding="same"), (3, 5, 4, 6), ["pad", "conv3d"]),
    ],
)
def test_padding_in_words_becomes_numbers(
    layer: nn.Module, shape: tuple[int, ...], found: list[str]
) -> None:
    program = captured(layer, shape)
    assert names(program) == found
    assert not {name for name in overloads(program) if name.endswith(".padding")}


@pytest.mark.parametrize(
    "function",
    [
        lambda x: 2 * x.float(),
        lambda x: 2 * x.to(torch.float32),
        lambda x: 2 * x.to(x.device),
        lambda x: 2 * x.type_as(x),
        lambda x: 2 * torch.clone(x).to("cpu", torch.float32),
    ],
)
def test_casts_that_change_nothing_disappear(function: Callable[[Tensor], Tensor]) -> None:
    found = names(captured(Call(function)))
    assert found[-1] == "mul"
    assert not {"to", "type_as", "_to_copy", "_assert_tensor_metadata"} & {*found}


def test_casts_to_whole_numbers_and_back_stay() -> None:
    found = names(captured(Call(lambda x: (10 * x).to(torch.int32).float())))
    assert found.count("to") == 2
    assert "_assert_tensor_metadata" not in found


def test_positions_counted_in_double_are_constants_and_pass() -> None:
    captured(Call(lambda x: x * torch.arange(10, dtype=torch.float64).sqrt().float()))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: F.normalize(x.double(), dim=1).float(), "'to' gives torch.float64"),
        (lambda x: torch.softmax(x, 1, dtype=torch.float64).float(), "'softmax' gives torch.flo"),
        (lambda x: (x.half() + 1).float(), "'to' gives torch.float16"),
    ],
)
def test_a_part_in_another_precision_is_refused_by_its_line(
    function: Callable[[Tensor], Tensor], said: str
) -> None:
    with pytest.raises(CaptureError, match="Leave out the cast") as caught:
        capture(Call(function).eval(), torch.zeros(2, *SHAPE))
    assert said in str(caught.value)
    assert "test_plain_operators.py" in str(caught.value)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.clip(x, -0.3, 0.4),
        lambda x: torch.clip(x, max=0.4),
        lambda x: torch.clip(x, x.mean(), x.amax((2, 3), keepdim=True) / 2),
        lambda x: (2 * x).clip_(0.1),
    ],
)
def test_clip_is_a_clamp(function: Callable[[Tensor], Tensor]) -> None:
    found = names(captured(Call(function)))
    assert "clamp" in found
    assert "clip" not in found


@pytest.mark.parametrize("layer", [nn.RReLU(), nn.RReLU(0.2, 0.7), nn.RReLU(inplace=True)])
def test_rrelu_has_one_slope_outside_training(layer: nn.Module) -> None:
    assert names(captured(nn.Sequential(nn.Conv2d(3, 6, 3), layer))) == ["conv2d", "leaky_relu"]


def windows(settings: dict[str, Any]) -> bool:
    return 2 * settings["padding"] <= settings["kernel_size"]


POOLS = [
    {"kernel_size": kernel, "stride": stride, "padding": padding, "count_include_pad": include}
    for kernel, stride, padding, include in itertools.product(
        (2, 3, 5), (1, 2, 4), (0, 1, 2), (False, True)
    )
]


@pytest.mark.parametrize("divisor", [None, 7])
@pytest.mark.parametrize("ceil", [False, True])
def test_pools_give_the_same_whatever_hangs_over(ceil: bool, divisor: int | None) -> None:
    # On 8 x 10 values windows hang over both axes, over one, the last one drops out, or all fit.
    for settings in filter(windows, POOLS):
        pool = nn.AvgPool2d(**settings, ceil_mode=ceil, divisor_override=divisor)
        program = captured(pool)
        (node,) = [n for n in program.graph.nodes if name_of(n) == "avg_pool2d"]
        assert len(node.args) < 7
        padding, hanging = node.args[3:5] if len(node.args) > 4 else ([0], False)
        counted = node.args[5] if len(node.args) > 5 else True
        # What hangs over and what is padded are never both there, except where neither counts.
        assert not hanging or not counted
        assert not (hanging and any(padding)) or not settings["count_include_pad"]


def test_one_pool_by_hand() -> None:
    """Values 1 to 5, windows of 4 at a stride of 3 with one zero before and behind."""
    pool = nn.AvgPool2d((1, 4), (1, 3), (0, 1), ceil_mode=True)
    program = capture(pool.eval(), torch.zeros(2, 1, 1, 5))
    values = torch.arange(1.0, 6).view(1, 1, 1, 5)
    # 0 1 2 3 | 3 4 5 0
    assert program(values).flatten().tolist() == [6 / 4, 12 / 4]
    pool = nn.AvgPool2d((1, 4), (1, 4), (0, 1), ceil_mode=True)
    program = capture(pool.eval(), torch.zeros(2, 1, 1, 5))
    # 0 1 2 3 | 4 5 0 and one that does not count
    assert program(values).flatten().tolist() == [6 / 4, 9 / 3]
    pool.divisor_override = 5
    program = capture(pool.eval(), torch.zeros(2, 1, 1, 5))
    torch.testing.assert_close(program(values).flatten(), torch.tensor([6 / 5, 9 / 5]))


def test_a_window_larger_than_the_image_is_the_image() -> None:
    program = captured(nn.AvgPool2d((9, 30), ceil_mode=True))
    (node,) = [n for n in program.graph.nodes if name_of(n) == "avg_pool2d"]
    assert node.args[1] == [8, 10]


@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        (nn.AvgPool1d(3, 2, 1, ceil_mode=True), (6, 10)),
        (nn.AvgPool3d(3, 2, 1, ceil_mode=True), (3, 4, 6, 8)),
        (nn.AvgPool3d(2, 3, 1, divisor_override=5), (3, 4, 6, 8)),
    ],
)
def test_pools_over_other_axes_too(pool: nn.Module, shape: tuple[int, ...]) -> None:
    captured(pool, shape)
