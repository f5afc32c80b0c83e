"""What capture makes of a network: plain operators, nothing in place, any batch."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from emptyset.errors import CaptureError
from emptyset.graph.capture import capture
from emptyset.graph.operators import name_of

SHAPE = (3, 8, 10)


class Network(nn.Module):
    """A convolution, whatever the test does with its output, a linear."""

    def __init__(self, middle: Callable[[Tensor], Tensor], width: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.linear = nn.Linear(width, 4)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.middle(self.conv(x)).mean((2, 3)))


def captured(module: nn.Module, shape: tuple[int, int, int] = SHAPE) -> fx.GraphModule:
    return capture(module.eval(), torch.zeros(2, *shape))


def names(program: fx.GraphModule) -> list[str]:
    return [name for node in program.graph.nodes if (name := name_of(node))]


def assert_same(module: nn.Module, program: fx.GraphModule) -> None:
    """On a batch of another size than at capture."""
    images = torch.randn(5, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(program(images), module(images), atol=1e-6, rtol=1e-5)


def relu_then_read(y: Tensor) -> Tensor:
    z = F.relu_(y)
    return z + 2 * y  # reads what relu_ left in y


def change_one_view(y: Tensor) -> Tensor:
    y.flatten(2).relu_()
    return y


def write_a_channel(y: Tensor) -> Tensor:
    y[:, 1] = 0.5
    return y


def add_to_some_channels(y: Tensor) -> Tensor:
    y[:, :2] += 1.0
    return y


def change_after_a_view(y: Tensor) -> Tensor:
    view = y[:, 2:]
    y.mul_(3.0)
    return view.mean(1, keepdim=True) + y


def change_a_chunk(y: Tensor) -> Tensor:
    first, _ = y.chunk(2, 1)
    first.neg_()
    return y


@pytest.mark.parametrize(
    "middle",
    [
        relu_then_read, change_one_view, write_a_channel, add_to_some_channels,
        change_after_a_view, change_a_chunk,
    ],
)  # fmt: skip
def test_what_is_changed_in_place_reaches_every_later_reader(
    middle: Callable[[Tensor], Tensor],
) -> None:
    module = Network(middle)
    program = captured(module)
    assert_same(module, program)
    assert not [n for n in names(program) if n.endswith("_") and not n.startswith("_")]


def test_a_batch_norm_beside_a_changed_view_stays_a_batch_norm() -> None:
    norm = nn.BatchNorm2d(6)
    nn.init.uniform_(norm.running_var, 0.3, 2.0)
    module = Network(lambda y: add_to_some_channels(norm(y)))
    module.norm = norm
    program = captured(module)
    assert_same(module, program)
    assert "batch_norm" in names(program)


@pytest.mark.parametrize(
    "middle",
    [
        lambda y: y.unbind(2)[1].unsqueeze(2) + y.unbind(2)[3].unsqueeze(2),
        lambda y: torch.cat(y.split([1, 3, 2], 1)[::-1], 1),
        lambda y: torch.cat(y.chunk(3, 1)[::-1], 1),
        lambda y: torch.cat(y.tensor_split(2, 3)[::-1], 3),
    ],
    ids=["unbind", "split", "chunk", "tensor_split"],
)
def test_operators_with_several_outputs_become_selects_and_slices(
    middle: Callable[[Tensor], Tensor],
) -> None:
    module = Network(middle)
    program = captured(module)
    assert_same(module, program)
    assert not {"unbind", "split", "split_with_sizes", "chunk", "tensor_split"} & {*names(program)}


def test_dropout_disappears() -> None:
    dropout = nn.Dropout(0.5).eval()
    module = Network(dropout)
    program = captured(module)
    assert_same(module, program)
    assert names(program) == ["conv2d", "mean", "linear"]


class AlwaysDropping(nn.Module):
    def __init__(self, share: float) -> None:
        super().__init__()
        self.layer, self.share = nn.Linear(5, 4), share

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.layer(x), self.share)


def test_dropout_that_evaluation_does_not_switch_off_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"at random in evaluation too.*training=self\.training"):
        capture(AlwaysDropping(0.5).eval(), torch.randn(2, 5))
    capture(AlwaysDropping(0.0).eval(), torch.randn(2, 5))


def test_equal_calls_become_one() -> None:
    module = Network(lambda y: F.relu(y) + y * F.relu(y))
    program = captured(module)
    assert_same(module, program)
    assert names(program).count("relu") == 1


@pytest.mark.parametrize(
    "middle",
    [
        lambda y: y.view(len(y), -1)[:, :, None, None],
        lambda y: y.view(-1, 2, 3, 48).transpose(1, 2).reshape(-1, 6, 6, 8),
        lambda y: y.transpose(1, 2).view_as(y.transpose(1, 2)),
    ],
    ids=["rows", "groups", "like another"],
)
def test_a_view_is_taken_however_memory_lies(middle: Callable[[Tensor], Tensor]) -> None:
    """As channels last, too, where torch refuses a view."""
    width = middle(torch.zeros(2, 6, 6, 8)).shape[1]
    module = Network(middle, width)
    program = captured(module)
    assert_same(module, program)
    assert not {"view", "_unsafe_view", "view_as"} & {*names(program)}
    images = torch.randn(5, *SHAPE)
    with torch.no_grad():
        lying = program(images.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(lying, module(images), atol=1e-6, rtol=1e-5)


class Attention(nn.Module):
    def __init__(
        self,
        *,
        mask: Tensor | None = None,
        mask_of: Callable[[Tensor], Tensor] | None = None,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 2, 2)
        self.query_key_value = nn.Linear(6, 18)
        self.linear = nn.Linear(6, 4)
        self.register_buffer("mask", mask)
        self.mask_of, self.causal = mask_of, causal

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        q, k, v = self.query_key_value(tokens).chunk(3, -1)
        mask = self.mask_of(x) if self.mask_of else self.mask
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=self.causal)
        return self.linear(out.mean(1))


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_opened_up_into_two_products_and_a_softmax(masked: bool) -> None:
    module = Attention(mask=torch.randn(20, 20) if masked else None)
    program = captured(module)
    assert_same(module, program)
    found = names(program)
    assert found.count("matmul") == 2
    assert found.count("softmax") == 1
    assert "scaled_dot_product_attention" not in found


def test_attention_of_its_own_scale_keeps_it() -> None:
    module = Attention()
    plain = F.scaled_dot_product_attention
    module.forward = lambda x: plain(x, x, x, scale=0.7).mean((1, 3))
    assert_same(module, captured(module))


def test_causal_attention_is_refused_with_the_way_out() -> None:
    with pytest.raises(CaptureError, match=r"causal mask.*pass the mask as a boolean tensor"):
        captured(Attention(causal=True))


def lower_triangle(x: Tensor) -> Tensor:
    return torch.ones(20, 20, device=x.device).tril() > 0


def nobody(x: Tensor) -> Tensor:
    """As transformers write the mask of images: true for every image and every pair."""
    return (torch.arange(20, device=x.device)[None, None] >= 0).expand(x.shape[0], 20, 20)


def bright(x: Tensor) -> Tensor:
    return x.mean(1)[:, ::2, ::2].flatten(1)[:, None] > -0.2


@pytest.mark.parametrize(
    ("mask", "kept"), [(lower_triangle, True), (nobody, False), (bright, True)]
)
def test_a_boolean_mask_takes_scores_out_where_it_is_false(
    mask: Callable[[Tensor], Tensor], kept: bool
) -> None:
    module = Attention(mask_of=mask)
    program = captured(module)
    assert_same(module, program)
    assert ("where" in names(program)) == kept
    assert kept or "arange" not in names(program)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the line that the error names
            x = 2 * x
        return self.linear(x.mean((1, 2)))


def test_a_network_that_cannot_be_captured_is_named_with_its_line(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(CaptureError) as caught:
        captured(Branches())
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    line = 1 + next(i for i, text in enumerate(lines) if "# the line that" in text)
    text = str(caught.value)
    assert "cannot capture Branches" in text
    assert f'test_capture.py", line {line}' in text
    assert "torch.where" in text
    # torch's own pages of graphs stay out of the way.
    assert capfd.readouterr().err == ""


def test_the_network_itself_is_left_alone() -> None:
    module = Network(nn.ReLU(inplace=True))
    module.train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    capture(module, torch.zeros(2, *SHAPE))
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
