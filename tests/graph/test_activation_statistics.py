"""What BatchNorm tells of every tensor, against a network that is fed with normal values."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from emptyset.graph.activation_statistics import activation_statistics, grouped_sum
from emptyset.graph.channel_labels import channel_axis
from emptyset.graph.operators import name_of
from emptyset.graph.student import Student, prepare
from emptyset.teachers.teacher import Teacher

Make = Callable[..., Teacher]


def block(inputs: int, outputs: int, size: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, bias=False), nn.BatchNorm2d(outputs))


def node_of(student: Student, kind: str, index: int = 0) -> fx.Node:
    return [n for n in student.program.graph.nodes if name_of(n) == kind][index]


@pytest.mark.parametrize("batch_norm", ["fold", "frozen"])
def test_a_layer_with_batch_norm_has_its_shift_and_its_scale(
    batch_norm: str, teacher_of: Make
) -> None:
    net = nn.Sequential(block(3, 5), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    student = prepare(teacher_of(net), "w8a8", plan="every_layer", batch_norm=batch_norm)
    known = activation_statistics(student)
    clip = node_of(student, "hardtanh")
    norm = net[0][1]
    stored = norm.running_var / (norm.running_var + norm.eps)
    told = known[clip.args[0]]
    torch.testing.assert_close(told.mean, norm.bias.double())
    torch.testing.assert_close(told.deviation, (norm.weight.abs() * stored.sqrt()).double())
    low, high = known[clip].reach(100.0)
    assert (low.max().item(), high.min().item()) == (0.0, 6.0)


def test_a_batch_norm_that_stays_in_the_graph_tells_too(teacher_of: Make) -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(F.relu(self.norm(x))).mean((2, 3))

    for plan, kind in (("edges_8bit", "batch_norm"), ("integer", "conv2d")):
        student = prepare(teacher_of(First()), "w8a8", plan=plan)
        told = activation_statistics(student)[node_of(student, kind)]
        torch.testing.assert_close(told.mean, student.teacher.module.norm.bias.double())


class Operators(nn.Module):
    """Between two BatchNorms: whatever may stand there."""

    def __init__(self, between: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.left, self.right, self.between = block(3, 4, 1), block(3, 4, 1), between
        self.slopes = nn.PReLU(4)
        nn.init.uniform_(self.slopes.weight, 0.1, 0.6)
        self.register_buffer("offset", torch.tensor([0.3, -0.2, 0.1, 0.5]))
        self.register_buffer("spread", torch.tensor([0.5, 2.0, 1.5, 3.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.between(self, self.left(x), self.right(x))


@pytest.mark.parametrize(
    "between",
    [
        lambda net, x, y: F.relu(x) + y,
        lambda net, x, y: x - 2.5 * F.relu6(y),
        lambda net, x, y: 3.0 - x,
        lambda net, x, y: (x - net.offset.view(1, 4, 1, 1)) / net.spread[None, :, None, None],
        lambda net, x, y: F.relu(x) * net.spread.exp().unsqueeze(-1).unsqueeze(-1),
        lambda net, x, y: F.relu(x) * torch.sigmoid(y),
        lambda net, x, y: torch.cat([F.relu(x), y * 2], 1),
        lambda net, x, y: F.pad(F.relu(x), (0, 0, 0, 0, 1, 2)),
        lambda net, x, y: F.hardswish(x)[:, 1:3],
        lambda net, x, y: net.slopes(x),
        lambda net, x, y: F.leaky_relu(x, 0.2).div(2.0),
        lambda net, x, y: F.pad(x, (4, 0, 0, 4)),
    ],
    ids=[
        "sum", "difference", "from a constant", "normalised", "computed factor", "product",
        "concat", "zero channels", "hardswish", "prelu", "leaky", "zero border",
    ],
)  # fmt: skip
def test_moments_are_those_of_normal_values_sent_through(
    between: Callable[..., Tensor], teacher_of: Make
) -> None:
    net = Operators(between)
    student = prepare(teacher_of(net), "w8a8", plan="every_layer")
    output = next(n for n in student.program.graph.nodes if n.op == "output").all_input_nodes[0]
    told = activation_statistics(student)[output]
    generator, norms = torch.Generator().manual_seed(0), (net.left[1], net.right[1])
    drawn = []
    for norm in norms:
        spread = norm.weight.abs() * (norm.running_var / (norm.running_var + norm.eps)).sqrt()
        noise = torch.randn(900, 4, 8, 10, generator=generator)
        drawn.append(norm.bias.view(-1, 1, 1) + spread.view(-1, 1, 1) * noise)
    rows = between(net, *drawn).movedim(1, 0).flatten(1).double()
    mean, variance = told.moments()
    torch.testing.assert_close(mean, rows.mean(1), atol=0.02, rtol=0.02)
    torch.testing.assert_close(variance, rows.var(1), atol=0.03, rtol=0.03)
    low, high = told.reach(7.0)
    assert bool((low <= rows.amin(1) + 1e-4).all())
    assert bool((high >= rows.amax(1) - 1e-4).all())


def test_pools_keep_the_mean_or_take_the_largest(teacher_of: Make) -> None:
    net = nn.Sequential(block(3, 4, 1), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    student = prepare(teacher_of(net), "w8a8", plan="every_layer")
    known = activation_statistics(student)
    before = known[node_of(student, "conv2d")]
    largest = known[node_of(student, "max_pool2d")]
    # Of two independent normal variables: mean + deviation / sqrt(pi).
    expected = before.mean + before.deviation / torch.pi**0.5
    torch.testing.assert_close(largest.moments()[0], expected, atol=2e-3, rtol=0)
    pooled = known[node_of(student, "flatten")]
    torch.testing.assert_close(pooled.moments()[0], largest.moments()[0])


@pytest.mark.parametrize("plan", ["integer", "edges_8bit"])
def test_an_adaptive_max_pool_takes_the_largest_too(plan: str, teacher_of: Make) -> None:
    net = nn.Sequential(
        block(3, 4, 1), nn.AdaptiveMaxPool2d((4, 5)), nn.Flatten(), nn.Linear(80, 6)
    )
    student = prepare(teacher_of(net), "w8a8", plan=plan)
    known = activation_statistics(student)
    before, largest = known[node_of(student, "conv2d")], known[node_of(student, "flatten")]
    # Windows of 2 x 2, which count as two values: mean + deviation / sqrt(pi).
    expected = (before.mean + before.deviation / torch.pi**0.5).repeat_interleave(4 * 5)
    torch.testing.assert_close(largest.moments()[0], expected, atol=2e-3, rtol=0)
    assert node_of(student, "linear") in known


class Placed(nn.Module):
    """A convolution with BatchNorm, and whatever is made of its output."""

    def __init__(self, channels: int, after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.block, self.after = block(3, channels, 1), after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(F.relu(self.block(x)))


@pytest.mark.parametrize(
    "after",
    [
        lambda x: x.permute(0, 2, 3, 1),
        lambda x: F.silu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
        lambda x: x.mean(3),
        lambda x: x.mean((2, 3), keepdim=True),
        lambda x: x.permute(0, 2, 3, 1).mean(1),
        lambda x: x.flatten(2).transpose(1, 2) * 2.0,
    ],
    ids=["last", "there and back", "rows", "pooled", "last of rows", "tokens"],
)
def test_channels_are_known_wherever_they_go(
    after: Callable[[Tensor], Tensor], teacher_of: Make
) -> None:
    """Against one image of normal values as large as the network's, sent through."""
    net = Placed(4, after)
    student = prepare(teacher_of(net), "w8a8", plan="every_layer")
    output = next(n for n in student.program.graph.nodes if n.op == "output").all_input_nodes[0]
    known, norm = activation_statistics(student), net.block[1]
    spread = norm.weight.abs() * (norm.running_var / (norm.running_var + norm.eps)).sqrt()
    noise = torch.randn(900, 4, 8, 10, generator=torch.Generator().manual_seed(0))
    values = after(F.relu(norm.bias.view(-1, 1, 1) + spread.view(-1, 1, 1) * noise))
    rows = values.movedim(known.axis(output), 0).flatten(1).double()
    torch.testing.assert_close(known[output].moments()[0], rows.mean(1), atol=0.02, rtol=0.02)


def test_a_linear_over_channels_that_come_last_is_a_weighted_sum(teacher_of: Make) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.linear = block(3, 5, 1), nn.Linear(5, 7)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.block(x)).permute(0, 2, 3, 1)
            return F.relu(self.linear(x)).mean((1, 2))

    net = Last()
    student = prepare(teacher_of(net), "w8a8")
    known = activation_statistics(student)
    linear, inputs = node_of(student, "linear"), known[node_of(student, "relu")].moments()[0]
    expected = [
        float(bias) + sum(float(w) * float(m) for w, m in zip(row, inputs, strict=True))
        for row, bias in zip(net.linear.weight, net.linear.bias, strict=True)
    ]
    assert known[linear].moments()[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert (known.axis(linear), len(known.read_by(linear))) == (3, 5)
    assert known.axis(node_of(student, "mean")) == 1


@pytest.mark.parametrize(
    "after",
    [
        lambda x: F.linear(x, x.new_zeros(6, 10) + 1.0),
        lambda x: x.mean(1),
        lambda x: x.mean((1, 2)),
        lambda x: x.mean(),
        lambda x: F.avg_pool2d(x.permute(0, 2, 3, 1), 2),
        lambda x: F.adaptive_max_pool2d(x.permute(0, 2, 3, 1), 2),
        lambda x: F.adaptive_max_pool2d(x, 2, return_indices=True)[1] * 1.0,
        lambda x: x / (1.0 + F.softmax(x, 1)),
        lambda x: (1.0 + F.softmax(x, 1)) / x,
        lambda x: torch.pow(2.0, x),
        lambda x: x + x.transpose(1, 3),
        lambda x: torch.stack([x, F.softmax(x, 1)]).clone(),
    ],
    ids=[
        "computed weight", "mean over channels", "over rows too", "over everything",
        "pool over channels", "largest over channels", "places", "divisor", "dividend", "exponent",
        "channels at odds", "stack",
    ],
)  # fmt: skip
def test_what_goes_across_channels_or_meets_the_unknown_is_unknown(
    after: Callable[[Tensor], Tensor], teacher_of: Make
) -> None:
    # As many channels as columns: no size tells that an axis is the wrong one.
    student = prepare(teacher_of(Placed(10, after)), "w8a8", plan="every_layer")
    known = activation_statistics(student)
    output = next(n for n in student.program.graph.nodes if n.op == "output").all_input_nodes[0]
    assert node_of(student, "relu") in known
    assert output not in known


def test_a_layer_that_reads_along_another_axis_is_told_nothing(teacher_of: Make) -> None:
    class AlongTheWidth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.width = block(3, 10, 1), nn.Linear(10, 7)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.width(F.relu(self.block(x)))).mean((2, 3))

    student = prepare(teacher_of(AlongTheWidth()), "w8a8")
    known, layer = activation_statistics(student), node_of(student, "linear")
    assert layer.args[0] in known
    assert known.read_by(layer) is None
    assert layer not in known


def test_a_layer_without_batch_norm_is_a_weighted_sum(teacher_of: Make) -> None:
    net = nn.Sequential(
        block(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 8, (1, 3), groups=2), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    student = prepare(teacher_of(net), "w8a8")
    known = activation_statistics(student)
    inputs = known[node_of(student, "relu")].moments()
    layer, expected = net[2], torch.zeros(2, 8, dtype=torch.double)
    for out in range(8):
        for position in range(3):
            kernel = layer.weight[out, position].double()
            channel = position + 3 * (out // 4)
            expected[0, out] += (kernel * inputs[0][channel]).sum()
            expected[1, out] += (kernel.square() * inputs[1][channel]).sum()
    mean, variance = known[node_of(student, "conv2d", 1)].moments()
    torch.testing.assert_close(mean, expected[0] + layer.bias.double())
    torch.testing.assert_close(variance, expected[1])
    assert node_of(student, "linear") in known


def test_a_constant_image_gives_the_grouped_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 3, 2, 5, generator=generator, dtype=torch.double)
    means = torch.randn(6, generator=generator, dtype=torch.double)
    image = means.view(1, 6, 1, 1).expand(1, 6, 2, 5)
    expected = F.conv2d(image, weight, groups=2).flatten()
    torch.testing.assert_close(grouped_sum(weight, means, 2), expected)


def test_what_no_batch_norm_reaches_is_unknown(teacher_of: Make) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.next = block(3, 4), block(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = F.softmax(self.block(x), 1)
            return F.relu(self.next(x)).mean((2, 3))

    student = prepare(teacher_of(Odd()), "w8a8", plan="every_layer")
    known = activation_statistics(student)
    assert node_of(student, "softmax") not in known
    assert node_of(student, "relu") in known


def test_pixels_are_normal_where_normalised_and_uniform_where_not(teacher_of: Make) -> None:
    net = nn.Sequential(block(3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    student = prepare(teacher_of(net), "w8a8")
    image = next(n for n in student.program.graph.nodes if n.op == "placeholder")
    told = activation_statistics(student)[image]
    assert channel_axis(image) == 1
    # Black and white: (0 - 0.5) / 0.25 and (1 - 0.5) / 0.25.
    assert [end.tolist() for end in told.reach(9.0)] == [[-2.0] * 3, [2.0] * 3]
    assert told.mean.tolist() == [0.0] * 3
