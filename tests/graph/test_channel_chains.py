"""Which layers' channels may be rescaled, and where each channel of a later tensor comes from."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.graph.channel_chains import columns, find_chains, scale_columns, scale_rows
from emptyset.graph.channel_labels import (
    channel_axis,
    channels_along,
    labels_behind,
    own_labels,
    shape_of,
)
from emptyset.graph.operators import name_of
from emptyset.graph.student import prepare
from emptyset.teachers.teacher import Teacher

Make = Callable[..., Teacher]


class Net(nn.Module):
    """``between`` stands between two convolutions."""

    def __init__(self, between: Callable[[Tensor], Tensor], second: nn.Module) -> None:
        super().__init__()
        self.first, self.between, self.second = nn.Conv2d(3, 6, 3), between, second

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x))).flatten(1)


def chains_of(module: nn.Module, teacher_of: Make, plan: str = "integer"):
    return find_chains(prepare(teacher_of(module), "w8a8", plan=plan).program)


def shuffled(x: Tensor) -> Tensor:
    count, channels, height, width = x.shape
    return x.view(count, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize("plan", ["integer", "every_layer", "edges_8bit"])
@pytest.mark.parametrize(
    ("between", "channels"),
    [
        (F.relu, [0, 1, 2, 3, 4, 5]),
        (lambda x: x, [0, 1, 2, 3, 4, 5]),
        (lambda x: F.max_pool2d(F.leaky_relu(x), 3, 2, 1), [0, 1, 2, 3, 4, 5]),
        (lambda x: F.avg_pool2d(F.relu(x), 2, padding=1), [0, 1, 2, 3, 4, 5]),
        (lambda x: shuffled(F.relu(x)), [0, 3, 1, 4, 2, 5]),
        (lambda x: F.pad(F.relu(x), (0, 1, 1, 0, 2, 1)), [-1, -1, 0, 1, 2, 3, 4, 5, -1]),
        (lambda x: F.relu(x)[:, 1:4], [1, 2, 3]),
        (lambda x: torch.cat([F.relu(x), x.relu()], 1), [0, 1, 2, 3, 4, 5] * 2),
        (lambda x: F.adaptive_max_pool2d(F.relu(x), (4, 5)), [0, 1, 2, 3, 4, 5]),
        # 26 of 99 values are zeros: their average with channel 5 must not be taken for channel 4.
        (
            lambda x: F.pad(x, (1, 0, 1, 2)).mean((2, 3), keepdim=True).expand(-1, -1, 3, 4),
            [0, 1, 2, 3, 4, 5],
        ),
        (lambda x: F.pixel_unshuffle(F.pixel_shuffle(F.relu(x)[:, 2:], 2), 2), [2, 3, 4, 5]),
    ],
    ids=[
        "relu", "nothing", "max pool", "average", "shuffle", "pad", "slice", "concat",
        "adaptive max pool", "mean of a padded image", "shuffled into pixels and back",
    ],
)  # fmt: skip
def test_channels_are_followed_to_the_reader(
    between: Callable[[Tensor], Tensor], channels: list[int], plan: str, teacher_of: Make
) -> None:
    net = Net(between, nn.Conv2d(len(channels), 4, 3))
    (chain,) = chains_of(net, teacher_of, plan)
    assert chain.name == "first"
    (reader,) = chain.readers
    assert reader.channels.tolist() == channels


@pytest.mark.parametrize(
    "between",
    [
        F.silu,
        lambda x: x + 1.0,
        lambda x: F.relu(x) + F.pad(x, (0, 0, 0, 0)) * 2,
        lambda x: F.relu(x) * torch.sigmoid(x.mean((2, 3), keepdim=True)),
        lambda x: F.layer_norm(x, x.shape[1:]),
        lambda x: F.max_pool2d(F.relu6(x), 2).clamp(0, 3),
    ],
    ids=["silu", "constant added", "added to itself", "squeeze", "layer norm", "clip later"],
)
def test_what_does_not_scale_with_its_input_ends_the_chain(
    between: Callable[[Tensor], Tensor], teacher_of: Make
) -> None:
    assert chains_of(Net(between, nn.Conv2d(6, 4, 3)), teacher_of, "every_layer") == []


@pytest.mark.parametrize(
    ("between", "inputs"),
    [
        (lambda x: F.relu(x).mean(1, keepdim=True), 1),
        (lambda x: F.avg_pool2d(F.pixel_shuffle(F.relu(x)[:, 1:5], 2), 2), 1),
        (lambda x: F.max_pool2d(F.pixel_shuffle(F.relu(x)[:, 1:5], 2), 2), 1),
        (lambda x: F.interpolate(F.pixel_shuffle(F.relu(x)[:, 1:5], 2), size=(5, 7)), 1),
        (lambda x: F.avg_pool2d(x.permute(0, 2, 3, 1), (1, 3)).permute(0, 3, 1, 2), 2),
        (lambda x: x[:, torch.arange(4)], 4),
        (lambda x: F.adaptive_max_pool2d(x, 3, return_indices=True)[1] * x[:, :, :3, :3], 6),
    ],
    ids=[
        "mean over channels", "average of pixels that were channels", "largest of such",
        "one of such", "pool over channels", "index that is computed", "places of a max pool",
    ],
)  # fmt: skip
def test_channels_that_meet_or_go_where_nobody_knows_end_the_chain(
    between: Callable[[Tensor], Tensor], inputs: int, teacher_of: Make
) -> None:
    assert chains_of(Net(between, nn.Conv2d(inputs, 4, 3)), teacher_of, "every_layer") == []


class Stacked(nn.Module):
    """Rows of two layers stand below each other, or channels of two beside each other."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.above, self.below = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 3, padding=1)
        self.reader = nn.Conv2d(6 if axis == 2 else 12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([F.relu(self.above(x)), F.relu(self.below(x))], self.axis)
        return self.reader(x).mean((2, 3))


def test_what_comes_from_another_layer_is_no_zero(teacher_of: Make) -> None:
    assert chains_of(Stacked(2), teacher_of) == []
    chains, none = chains_of(Stacked(1), teacher_of), [-1] * 6
    assert [chain.readers[0].channels.tolist() for chain in chains] == [
        [*range(6), *none],
        [*none, *range(6)],
    ]
    assert not any(chain.readers[0].padded for chain in chains)


@pytest.mark.parametrize(
    ("between", "padded"),
    [
        (F.relu, False),
        (lambda x: F.pad(F.relu(x), (1, 0)), True),
        (lambda x: F.pad(F.relu(x), (0, 0, 0, 0, 1, 0))[:, 1:], False),
        (lambda x: F.adaptive_avg_pool2d(F.pad(F.relu(x), (1, 2)), (2, 3)), True),
        (lambda x: F.relu(F.pad(x, (1, 2)).mean((2, 3), keepdim=True)), True),
        (lambda x: F.interpolate(F.pad(x, (1, 2)), size=(3, 5), mode="bilinear")[..., 1:-1], True),
        (lambda x: F.avg_pool2d(x, 3, padding=1), True),
        (lambda x: F.avg_pool2d(x, 3, padding=1, count_include_pad=False), False),
        (lambda x: F.max_pool2d(F.pad(F.relu(x), (1, 1, 1, 1)), 2), False),
        (lambda x: F.max_pool2d(F.pad(F.relu(x), (2, 2, 2, 2)), 2), True),
        (lambda x: F.adaptive_avg_pool2d(F.relu(x), (2, 3)), False),
        (lambda x: F.interpolate(x, size=(3, 5), mode="bicubic"), False),
    ],
    ids=[
        "nothing", "pad", "channel of zeros", "average of a padded image", "mean of one",
        "interpolated at its border", "average that pads", "average that leaves the border out",
        "largest beside zeros", "largest of zeros", "average", "interpolated",
    ],
)  # fmt: skip
def test_zeros_around_are_seen_even_where_an_average_took_them_in(
    between: Callable[[Tensor], Tensor], padded: bool, teacher_of: Make
) -> None:
    (chain,) = chains_of(Net(between, nn.Conv2d(6, 4, 1)), teacher_of)
    assert chain.readers[0].channels.tolist() == list(range(6))
    assert chain.readers[0].padded is padded


class MaxPooled(nn.Module):
    """A layer is read by another, and by a third behind a max pool that tells places too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = (
            nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 1), nn.Linear(6 * 2 * 4, 5)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        pooled = F.adaptive_max_pool2d(x, (2, 4)).flatten(1)
        return self.left(x).mean((2, 3)) + self.right(pooled)


def test_a_reader_behind_an_operator_of_two_outputs_is_not_overlooked(teacher_of: Make) -> None:
    (chain,) = chains_of(MaxPooled(), teacher_of)
    channels = {reader.node.target: reader.channels.tolist() for reader in chain.readers}
    assert channels == {
        torch.ops.aten.conv2d.default: list(range(6)),
        torch.ops.aten.linear.default: [c for c in range(6) for _ in range(8)],
    }


@pytest.mark.parametrize(
    ("first", "second", "before"),
    [
        (nn.Conv1d(3, 6, 3), nn.Conv1d(6, 4, 5), lambda x: x.flatten(2)),
        (nn.Conv3d(2, 6, 1), nn.Conv3d(6, 4, (1, 3, 1)), lambda x: x.unsqueeze(1)[:, [0, 0]]),
        (nn.Linear(3, 6), nn.Linear(6, 4), lambda x: x.permute(0, 2, 3, 1)),
        (nn.Linear(3, 6), nn.Linear(6, 4), lambda x: x[:, :, 2:3].permute(0, 2, 3, 1)),
        (nn.Linear(3, 6), nn.Linear(6, 4), lambda x: x.flatten(2).transpose(1, 2)),
        (nn.Linear(10, 6), nn.Linear(6, 4), lambda x: x),
    ],
    ids=["conv1d", "conv3d", "channels last", "of one row", "tokens", "along the width"],
)
def test_the_operator_tells_where_the_channels_are(
    first: nn.Module, second: nn.Module, before: Callable[[Tensor], Tensor], teacher_of: Make
) -> None:
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = first, second

        def forward(self, x: Tensor) -> Tensor:
            return self.second(F.relu(self.first(before(x)))).flatten(1)

    (chain,) = chains_of(Placed(), teacher_of)
    assert chain.name == "first"
    assert chain.readers[0].channels.tolist() == list(range(6))
    axis = channel_axis(chain.writer)
    assert shape_of(chain.writer)[axis] == 6
    # A clip in between has its bounds along the same axis.
    assert channel_axis(chain.between[0]) == axis


class Branched(nn.Module):
    """One layer is read by two, another by a layer and by an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.left, self.right = nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(6, 5, 1)
        self.again = nn.Conv2d(5, 5, 3, padding=1)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.left(x)) + self.right(x)
        x = x + self.again(x)
        return self.head(x.mean((2, 3)))


def test_a_residual_addition_is_respected_and_two_readers_are_one_chain(teacher_of: Make) -> None:
    (chain,) = chains_of(Branched(), teacher_of)
    assert chain.name == "stem"
    assert [str(reader.node) for reader in chain.readers] == ["conv2d_1", "conv2d_2"]
    assert [reader.padded for reader in chain.readers] == [True, False]


class Twice(nn.Module):
    """One convolution is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.same, self.last = (
            nn.Conv2d(3, 6, 1),
            nn.Conv2d(6, 6, 1),
            nn.Conv2d(6, 4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.same(F.relu(self.same(F.relu(self.first(x)))))))[:, :, 0, 0]


def test_a_layer_that_is_called_twice_is_left_alone(teacher_of: Make) -> None:
    assert chains_of(Twice(), teacher_of) == []


def test_the_logits_are_left_alone_and_a_flattened_image_is_followed(teacher_of: Make) -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 6 * 8, 5))
    (chain,) = chains_of(net, teacher_of)
    assert chain.name == "0"
    assert chain.readers[0].channels.tolist() == [c for c in range(6) for _ in range(48)]


def test_depthwise_triples_are_two_chains_and_clips_are_named(teacher_of: Make) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.ReLU6(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(),
        nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip
    chains = chains_of(net, teacher_of)
    assert [chain.name for chain in chains] == ["0", "2", "4"]
    assert [len(chain.clips) for chain in chains] == [1, 0, 0]


def test_a_value_that_mixes_channels_has_no_source(teacher_of: Make) -> None:
    student = prepare(teacher_of(Net(F.relu, nn.Conv2d(6, 4, 3))), "w8a8")
    node = next(n for n in student.program.graph.nodes if name_of(n) == "relu")
    labels = own_labels(node)
    assert labels.shape == shape_of(node)
    assert channels_along(labels, channel_axis(node)).tolist() == [0, 1, 2, 3, 4, 5]
    assert channels_along(labels.transpose(1, 2), 1) is None
    reader = next(n for n in student.program.graph.nodes if name_of(n) == "conv2d")
    assert labels_behind(reader, {reader.args[0]: labels}) is None


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 4, 3),
        nn.Conv2d(6, 8, (3, 1), groups=2),
        nn.Conv2d(6, 12, 3, groups=6),
        nn.ConvTranspose2d(6, 4, 2),
        nn.Linear(6, 5),
    ],
    ids=["full", "grouped", "depthwise", "transposed", "linear"],
)
def test_columns_and_rows_are_what_the_layer_multiplies(layer: nn.Module, teacher_of: Make) -> None:
    """Scaling a column is scaling that input channel, scaling a row that output channel."""
    linear = isinstance(layer, nn.Linear)
    stem = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()) if linear else nn.Identity()
    net = nn.Sequential(nn.Conv2d(3, 6, 1), stem, layer, nn.Flatten())
    program = prepare(teacher_of(net), "w8a8", plan="every_layer").program
    node = [n for n in program.graph.nodes if name_of(n).startswith(("conv", "linear"))][-1]
    generator = torch.Generator().manual_seed(1)
    shape = (2, 6) if linear else (2, 6, 5, 7)
    x = torch.randn(shape, generator=generator, dtype=torch.double)
    layer = layer.double()
    layer.bias = None
    weight = layer.weight.detach()
    factors = torch.rand(6, generator=generator, dtype=torch.double) + 0.5
    around = (1, 6) if linear else (1, 6, 1, 1)
    expected = layer(x * factors.view(around))
    layer.weight = nn.Parameter(scale_columns(weight, node, factors))
    torch.testing.assert_close(layer(x), expected)
    assert columns(weight, node).shape[0] == 6
    assert columns(weight, node).numel() == weight.numel()
    outputs = expected.shape[1]
    factors = torch.rand(outputs, generator=generator, dtype=torch.double) + 0.5
    layer.weight = nn.Parameter(weight)
    expected = layer(x) * factors.view(1, -1, *[1] * (x.dim() - 2))
    layer.weight = nn.Parameter(scale_rows(weight, node, factors))
    torch.testing.assert_close(layer(x), expected)
