"""Coarser products: which of them, and what they give."""

import pytest
import torch
from torch import Tensor

from emptyset.graph.products import product_in

ATEN = torch.ops.aten


def values(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        (ATEN.conv2d.default, (values(2, 6, 5, 7), values(4, 6, 3, 3), None, [1, 1], [1, 1])),
        # Two channels in a group.
        (
            ATEN.conv2d.default,
            (values(2, 6, 5, 7), values(9, 2, 3, 3), values(9), [1, 1], [0, 0], [1, 1], 3),
        ),
        (ATEN.linear.default, (values(2, 6), values(4, 6), values(4))),
        (ATEN.matmul.default, (values(2, 3, 6), values(2, 6, 5))),
    ],
    ids=["convolution", "grouped", "linear", "matmul"],
)
def test_a_product_is_that_of_rounded_tensors(target, arguments) -> None:
    found = product_in(torch.bfloat16, target, *arguments)
    rounded = [a.bfloat16().float() if isinstance(a, Tensor) else a for a in arguments]
    exact, near = target(*arguments), target(*rounded)
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    # What is left is the rounding of the outcome itself.
    torch.testing.assert_close(found, near, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("multiplier", [1, 2])
def test_a_depthwise_convolution_stays_as_it_is(multiplier: int) -> None:
    arguments = (
        values(2, 6, 5, 7), values(6 * multiplier, 1, 3, 3), None, [1, 1], [1, 1], [1, 1], 6,
    )  # fmt: skip
    target = ATEN.conv2d.default
    assert torch.equal(product_in(torch.bfloat16, target, *arguments), target(*arguments))
