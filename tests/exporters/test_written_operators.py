"""Networks with operators that runtimes or torch's exporter know in another form only."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from between_convolutions import Between
from torch import Tensor, nn

from emptyset.errors import EmptysetError, UnsupportedModelError
from emptyset.exporters.kernels import session
from emptyset.exporters.onnx import export, export_float


class NormInSingle(nn.LayerNorm):
    """As transformers write a norm that stays exact in half precision."""

    def forward(self, x: Tensor) -> Tensor:
        x_NHWC = x.permute(0, 2, 3, 1)
        weight, bias = self.weight.float(), self.bias.float()
        normed = F.layer_norm(x_NHWC.float(), self.normalized_shape, weight, bias, self.eps)
        return normed.type_as(x).permute(0, 3, 1, 2)


def softmax_in_single(x: Tensor) -> Tensor:
    tokens = x.flatten(2)
    shares = torch.softmax(tokens @ tokens.transpose(1, 2), -1, dtype=torch.float32).to(x.dtype)
    return (shares @ tokens).unflatten(2, (8, 10))


def times_positions(x: Tensor) -> Tensor:
    """Whole numbers, cast when the network runs."""
    return x * (torch.arange(x.shape[-1], device=x.device) % 3).float()


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
@pytest.mark.parametrize(
    "middle",
    [NormInSingle(6), softmax_in_single, times_positions],
    ids=["norm", "softmax", "positions"],
)
def test_casts_in_the_network_are_certified(
    middle: Callable[[Tensor], Tensor], bits: str, shipped
) -> None:
    shipped(Between(middle), bits)


class Masked(nn.Module):
    def __init__(self, mask: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.embed, self.mask = nn.Conv2d(3, 6, 2, 2), mask
        self.query_key_value, self.last = nn.Linear(6, 18), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        q, k, v = self.query_key_value(tokens).chunk(3, -1)
        return self.last(F.scaled_dot_product_attention(q, k, v, self.mask(x)).mean(1))


@pytest.mark.parametrize(
    "mask",
    [
        lambda x: (torch.arange(20)[None, None] >= 0).expand(x.shape[0], 20, 20),
        lambda x: torch.ones(20, 20).tril() > 0,
        lambda x: x.mean(1)[:, ::2, ::2].flatten(1)[:, None] > -0.2,
    ],
    ids=["always true", "the same for every image", "of the image"],
)
@pytest.mark.parametrize("plan", ["integer", "every_layer"])
def test_attention_with_a_boolean_mask_is_certified(
    mask: Callable[[Tensor], Tensor], plan: str, shipped
) -> None:
    shipped(Masked(mask), "w8a8", plan=plan)


@pytest.mark.parametrize(
    "middle",
    [lambda x: torch.clip(x, -0.1, 0.3), nn.RReLU(0.1, 0.4), nn.RReLU(inplace=True)],
    ids=["clip", "rrelu", "rrelu in place"],
)
@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
def test_other_names_of_known_operators_are_written(
    middle: Callable[[Tensor], Tensor], bits: str, shipped
) -> None:
    assert shipped(Between(middle), bits).integer_share == 1.0


POOLS = {
    "hanging over": nn.AvgPool2d(3, 2, ceil_mode=True),
    "hanging over the padding": nn.AvgPool2d(4, 3, 1, ceil_mode=True),
    "hanging over one axis, short of the other": nn.AvgPool2d(
        (4, 3), (3, 4), (2, 1), ceil_mode=True
    ),
    "dropping the last window": nn.AvgPool2d(3, 4, 1, ceil_mode=True),
    "leaving the padding out": nn.AvgPool2d(
        (4, 3), (3, 4), (2, 1), ceil_mode=True, count_include_pad=False
    ),
    "larger than the image": nn.Sequential(nn.AvgPool2d(30, ceil_mode=True), nn.Upsample(None, 3)),
    "a divisor": nn.AvgPool2d(2, divisor_override=3),
    "a divisor, padded and hanging over": nn.AvgPool2d(
        4, 3, 1, ceil_mode=True, count_include_pad=False, divisor_override=7
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", POOLS)
def test_every_average_pool_is_certified(what: str, shipped) -> None:
    network = Between(POOLS[what])
    artefact = shipped(network)
    kept = "a divisor" in what or what == "larger than the image"
    assert kept or artefact.operators["QLinearAveragePool"] == 1


@pytest.mark.parametrize("what", ["hanging over the padding", "a divisor"])
def test_the_float_file_has_the_same_pool(what: str, teacher_of, tmp_path: Path) -> None:
    teacher = teacher_of(Between(POOLS[what]))
    export_float(teacher, tmp_path / "float.onnx")
    images = torch.randn(5, 3, 8, 10)
    (logits,) = session(tmp_path / "float.onnx").run(None, {"images": images.numpy()})
    np.testing.assert_allclose(logits, teacher.module(images).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("between", "name"),
    [
        (lambda x: x + torch.special.i0(x), ".*i0"),
        # An image and its mirror image, taken apart again: the exporter dies of sizes unknown.
        (lambda x: sum(torch.cat([x, x.flip(3)]).chunk(2)), "SplitToSequence"),
    ],
    ids=["no form", "a fault of the exporter"],
)
def test_an_operator_without_an_onnx_form_is_named(
    between, name: str, calibrated, tmp_path: Path
) -> None:
    student, _ = calibrated(Between(between))
    with pytest.raises(
        UnsupportedModelError, match=f"cannot write the operator '{name}'"
    ) as caught:
        export(student, tmp_path / "model.onnx")
    assert isinstance(caught.value, EmptysetError)
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
