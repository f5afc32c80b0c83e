"""A layer has a place of its own wherever its weight lies, so that it can be given a bias."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import emptyset
from emptyset.graph.capture import capture
from emptyset.graph.operators import attribute
from emptyset.graph.student import prepare


class Functional(nn.Module):
    """A kernel that is a parameter of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 3, 3, 3) * 0.2)
        self.norm, self.conv = nn.BatchNorm2d(6), nn.Conv2d(6, 5, 3)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(F.conv2d(x, self.kernel)))
        return self.head(F.relu(self.conv(x)).mean((2, 3)))


class Blurred(nn.Module):
    """Anti-aliased pooling: the filter is a buffer, and no layer's."""

    def __init__(self) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("filt", (row[:, None] * row / 16).expand(6, 1, 3, 3).clone())
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.next, self.second = nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(F.relu(self.norm(self.conv(x))), (1, 1, 1, 1), mode="reflect")
        x = F.conv2d(x, self.filt, stride=2, groups=6)
        return self.head(F.relu(self.second(self.next(x))).mean((2, 3)))


class Attention(nn.Module):
    """Queries, keys and values come from one packed parameter."""

    def __init__(self, *, bias: bool = False) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.attention = nn.MultiheadAttention(8, 2, bias=bias, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.head((tokens + mixed).mean(1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "functional": Functional, "blurred": Blurred, "attention": Attention,
}  # fmt: skip


@pytest.mark.parametrize("steps", [
    [("equalize", {})], [("bias_correction", {"statistics": "empirical"})],
    [("outlier_channel_splitting", {})],
], ids=lambda steps: steps[0][0])  # fmt: skip
@pytest.mark.parametrize("name", NETWORKS)
def test_refiners_that_add_to_a_layer_run_and_leave_the_float_network(
    name: str, steps: Any, calibrated: Callable[..., Any]
) -> None:
    net = NETWORKS[name]().requires_grad_(False).eval()
    student, images = calibrated(net, "w8a8")
    for method, settings in steps:
        emptyset.refine(student, images, method, **settings)
    with student.float_mode():
        torch.testing.assert_close(student(images.images), net(images.images), atol=1e-4, rtol=1e-4)
    copied = prepare(student.teacher, "w8a8")
    copied.load_state_dict(student.state_dict())
    assert torch.equal(copied(images.images), student(images.images))


def test_layers_keep_their_names_and_buffers_stay_buffers() -> None:
    graph = capture(Blurred().eval(), torch.rand(2, 3, 12, 14))
    assert "filt.weight" in dict(graph.named_buffers())
    assert "conv.weight" in dict(graph.named_parameters())
    graph = capture(Attention().eval(), torch.rand(2, 3, 12, 16))
    own = {path for path, _ in graph.named_parameters()}
    assert "attention.in_proj_weight.weight" in own
    assert "attention.in_proj_weight" not in own


def test_what_else_reads_the_weight_reads_it_there() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(6, 3, 3, 3))
            self.head = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = F.conv2d(x, self.kernel) * self.kernel.mean()
            return self.head(x.mean((2, 3)))

    net, x = Twice().eval(), torch.rand(5, 3, 7, 9)
    torch.testing.assert_close(capture(net, x[:2])(x), net(x))


def test_a_learnt_bias_stays_with_its_learnt_weight(calibrated: Callable[..., Any]) -> None:
    student, _ = calibrated(Attention(bias=True).requires_grad_(False), "w8a8")
    learnt = {}
    for path in ("attention.in_proj_weight.weight", "attention.in_proj_bias", "head.bias"):
        value = attribute(student.program, path)
        student.originals[path] = value.detach().clone()
        with torch.no_grad():
            value.add_(1.0)
        learnt[path] = value.detach().clone()
    with student.only_layer("attention.in_proj_weight"):
        now = {path: attribute(student.program, path).detach().clone() for path in learnt}
    changed = [path for path in learnt if not torch.equal(now[path], learnt[path])]
    assert changed == ["head.bias"]
    assert torch.equal(now["head.bias"], student.originals["head.bias"])


class Queries(nn.Module):
    """Learnt queries go through a layer that no image reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.learnt = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 2, 8))
        self.query, self.key = nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        asked = self.query(self.learnt).expand(len(x), -1, -1)
        mixed = F.scaled_dot_product_attention(asked, self.key(tokens), tokens)
        return self.head(mixed.mean(1))


def test_a_layer_that_no_image_reaches_is_left_as_it_is(calibrated: Callable[..., Any]) -> None:
    student, images = calibrated(Queries().requires_grad_(False), "w4a8", plan="every_layer")
    emptyset.refine(student, images, "bias_correction", statistics="empirical")
    assert set(student.originals) == {"patches.bias", "key.bias", "head.bias"}
