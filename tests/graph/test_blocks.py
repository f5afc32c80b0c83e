"""Blocks by cut points: run one after the other they are the student."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tests.fixtures.small_teachers import Dense
from torch import Tensor, nn

from emptyset.graph.blocks import Block, find_blocks


class Residual(nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1)
        self.shortcut = nn.Conv2d(inside, outside, 1) if inside != outside else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.stage = nn.Sequential(Residual(5, 5), Residual(5, 6), Residual(6, 6))
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stage(F.relu(self.stem(x))).mean((2, 3)))


class Inverted(nn.Module):
    """Expand, depthwise, project; every one a cut point of its own, merged by module path."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(
            nn.Sequential(
                nn.Conv2d(c, 8, 1), nn.ReLU6(), nn.Conv2d(8, 8, 3, padding=1, groups=8),
                nn.ReLU6(), nn.Conv2d(8, 5, 1),
            ) for c in (3, 5)
        ))  # fmt: skip
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean((2, 3)))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(6), nn.LayerNorm(6)
        self.qkv, self.proj = nn.Linear(6, 18), nn.Linear(6, 6)
        self.fc1, self.fc2 = nn.Linear(6, 9), nn.Linear(9, 6)

    def forward(self, x: Tensor, count: int) -> Tensor:
        q, k, v = (
            self.qkv(self.norm1(x)).reshape(count, -1, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(count, -1, 6)
        x = x + self.proj(y)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """Every block reads the image's batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 6, 2, 2), nn.Linear(6, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.blocks = nn.ModuleList([Layer(), Layer()])

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[0]
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(count, -1, -1), x], 1)
        for block in self.blocks:
            x = block(x, count)
        return self.head(x[:, 0])


class Windows(nn.Module):
    """Rows go into the batch and back, as in Swin: sizes are multiples of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 6, 1), nn.Linear(6, 4)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).permute(0, 2, 3, 1)
        count, rows, columns, _ = x.shape
        for layer in (self.first, self.second):
            windows = x.reshape(count * 4, rows // 4, columns, 6)
            x = F.gelu(layer(windows)).reshape(count, rows, columns, 6)
        return self.head(x.mean((1, 2)))


class Unpooled(nn.Module):
    """Everything flows through two tensors at once: values, and the places they came from."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.next = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3, padding=1)
        self.last, self.head = nn.Conv2d(5, 5, 3, padding=1), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        values, places = F.max_pool2d(F.relu(self.conv(x)), 2, return_indices=True)
        x = F.relu(self.next(F.max_unpool2d(values, places, 2)))
        return self.head(F.relu(self.last(x)).mean((2, 3)))


class Recurrent(nn.Module):
    """An LSTM gives three tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm = nn.Conv2d(3, 6, 3), nn.LSTM(6, 5, batch_first=True)
        self.middle, self.head = nn.Linear(10, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        given, (last, _) = self.lstm(F.relu(self.conv(x)).flatten(2).transpose(1, 2))
        return self.head(F.relu(self.middle(torch.cat([given.mean(1), last[-1]], 1))))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet": ResNet, "inverted": Inverted, "vit": ViT, "windows": Windows, "unpooled": Unpooled,
    "recurrent": Recurrent,
}  # fmt: skip


def chain(blocks: list[Block], images: Tensor) -> Tensor:
    for block in blocks:
        images = block(images)
    return images


@pytest.mark.parametrize("bits", ["w8a8", "w3a4"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_chain_of_blocks_is_exactly_the_student(kind: str, bits: str, calibrated) -> None:
    student, images = calibrated(NETWORKS[kind](), bits)
    blocks = find_blocks(student)
    assert len(blocks) > 2
    for count in (1, 3):  # sizes come from each block's own input
        batch = images.images[:count]
        assert torch.equal(chain(blocks, batch), student(batch))
    with student.float_mode():
        assert torch.equal(chain(blocks, images.images), student(images.images))


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_layer_and_quantizer_belongs_to_exactly_one_block(kind: str, calibrated) -> None:
    student, _ = calibrated(NETWORKS[kind](), "w3a4")
    blocks = find_blocks(student)
    layers = [layer for block in blocks for layer in block.layers]
    assert layers == [layer.name for layer in student.layers()]
    owned = [name for block in blocks for name in block.quantizers]
    assert sorted(owned) == sorted(student.quantizers)


def test_blocks_of_a_residual_network(calibrated) -> None:
    student, _ = calibrated(ResNet(), "w8a8")
    assert [(b.name, len(b.layers)) for b in find_blocks(student)] == [
        ("stem", 1), ("stage.0", 2), ("stage.1", 3), ("stage.2", 2), ("head", 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "last_map"),
    [("resnet", (6, 8, 10)), ("inverted", (5, 8, 10)), ("windows", (8, 10, 6))],
)
def test_the_mean_over_all_positions_belongs_to_the_layer_that_reads_it(
    kind: str, last_map: tuple[int, ...], calibrated
) -> None:
    student, images = calibrated(NETWORKS[kind](), "w8a8")
    *front, head = find_blocks(student)
    given = chain(front, images.images[:2])
    assert given.shape == (2, *last_map)
    assert head.layers == ("head",)
    assert head(given).shape == (2, 4)


def test_a_mean_that_no_layer_reads_belongs_to_what_it_averages(calibrated) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    student, images = calibrated(module, "w8a8")
    blocks = find_blocks(student)
    assert [block.layers for block in blocks] == [("0",), ("2",)]
    assert chain(blocks, images.images[:2]).shape == (2, 4)


def test_neighbours_of_one_module_are_merged(calibrated) -> None:
    student, _ = calibrated(Inverted(), "w8a8")
    assert [(b.name, len(b.layers)) for b in find_blocks(student)] == [
        ("blocks.0", 3), ("blocks.1", 3), ("head", 1),
    ]  # fmt: skip


def test_blocks_of_a_transformer(calibrated) -> None:
    student, _ = calibrated(ViT(), "w8a8")
    found = [(b.name, b.layers) for b in find_blocks(student)]
    assert [name for name, _ in found] == ["embed", "blocks.0", "blocks.1", "head"]
    assert found[1][1] == tuple(f"blocks.0.{n}" for n in ("qkv", "proj", "fc1", "fc2"))


def test_a_quantizer_that_two_blocks_read_belongs_to_the_earlier(calibrated) -> None:
    student, _ = calibrated(ResNet(), "w8a8")
    blocks = find_blocks(student)
    layers = {layer.name: layer for layer in student.layers()}
    shared = layers["stage.1.conv1"].input_quantizer
    assert shared in blocks[1].quantizers
    assert shared not in blocks[2].quantizers


def test_a_stretch_without_a_cut_point_is_one_block_and_may_be_long(
    calibrated, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, _ = calibrated(Dense(), "w4a8")
    blocks = find_blocks(student)
    assert [len(b.layers) for b in blocks] == [1, 4, 1]
    assert not any(b.is_long for b in blocks)
    monkeypatch.setattr("emptyset.graph.blocks.LARGEST_BLOCK", 3)
    assert [b.is_long for b in blocks] == [False, True, False]


def test_blocks_share_the_students_parameters(calibrated) -> None:
    student, images = calibrated(ResNet(), "w8a8")
    blocks = find_blocks(student)
    before = blocks[0](images.images)
    with torch.no_grad():
        student.program.stem.weight.mul_(0.5)
    assert not torch.equal(blocks[0](images.images), before)
