"""What one quantizer's record says of the codes that a file gave there."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from emptyset.exporters.code_comparison import CodeComparison, NodeRecord

QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default


def program(scale: float = 1.0, zero_point: int = 0) -> fx.GraphModule:
    """Negates its input, quantizes that and dequantizes the codes."""
    graph = fx.Graph()
    negative = graph.call_function(torch.ops.aten.neg.default, (graph.placeholder("x"),))
    grid = (scale, zero_point, -128, 127, torch.int8)
    codes = graph.create_node("call_function", QUANTIZE, (negative, *grid), name="codes")
    graph.output(graph.call_function(DEQUANTIZE, (codes, *grid)))
    return fx.GraphModule(nn.Module(), graph)


def comparison_of(made: fx.GraphModule) -> CodeComparison:
    return CodeComparison(SimpleNamespace(program=made))  # type: ignore[arg-type]


def compared(*batches: tuple[Tensor, Tensor]) -> tuple[NodeRecord, str | None]:
    """The record after batches of exact values and a file's codes, and the fault it tells."""
    comparison = comparison_of(program())
    for exact, codes in batches:
        comparison.compare(-exact[:, None], {"codes": codes[:, None].to(torch.int8).numpy()})
    (record,) = comparison.records()
    return record, comparison.fault()


def near_boundaries(count: int, ties: int) -> tuple[Tensor, Tensor]:
    """Whole values, but for ``ties`` different ones just above a boundary that become the code
    below it."""
    exact = torch.arange(count).double().remainder(90)
    codes = exact.clone()
    exact[:ties] += 0.5 + 1e-4 * (1 + torch.arange(ties).double() / ties)
    return exact, codes


@pytest.mark.parametrize("by", [-2, 2, 3])
def test_more_than_one_code_off_is_a_fault_even_on_a_boundary(by: int) -> None:
    exact = torch.tensor([3.0, 7.4999, 11.0, 40.4999], dtype=torch.double)
    codes = torch.tensor([3, 7 + by, 11, 40])
    record, fault = compared((exact, codes))
    assert (record.ties, record.faults, record.worst) == (0, 1, abs(by))
    assert fault is not None
    assert f"1 of 4 codes differ by up to {abs(by)}" in fault


@pytest.mark.parametrize(("count", "allowed"), [(400, 3), (29_999, 3), (30_000, 30), (41_000, 41)])
def test_so_many_ties_may_be_and_one_more_is_a_fault(count: int, allowed: int) -> None:
    record, fault = compared(near_boundaries(count, allowed))
    assert (record.distinct_ties, fault) == (allowed, None)
    record, fault = compared(near_boundaries(count, allowed + 1))
    assert record.faults == 0
    assert fault is not None
    assert fault.endswith(f"{allowed + 1} of {count} codes are ties")


def test_what_was_wrong_in_one_batch_stays_when_the_next_is_right() -> None:
    wrong = torch.tensor([5.0, 6.0, 7.0, 8.2]).double(), torch.tensor([5, 9, 7, 9])
    right = torch.tensor([1.0, 2.0, 4.0]).double(), torch.tensor([1, 2, 4])
    record, fault = compared(wrong, right)
    assert (record.values, record.faults, record.worst) == (7, 2, 3)
    assert fault is not None
    assert "2 of 7 codes differ by up to 3" in fault


@pytest.mark.parametrize(
    "given", [{}, {"codes": np.zeros((3, 2), np.int8)}], ids=["none", "of another shape"]
)
def test_a_value_that_the_file_does_not_give_is_a_fault(given: dict[str, Any]) -> None:
    comparison = comparison_of(program())
    comparison.compare(torch.zeros(3, 1), given)
    assert "the file has no such value" in str(comparison.fault())


def test_the_logits_follow_from_the_codes_of_the_file() -> None:
    x = torch.tensor([[0.31, -0.72, 1.4], [0.0, 0.5, -0.26]])
    codes = np.array([[9, -3, 2], [5, 120, -7]], np.int8)
    given = comparison_of(program(0.1, 5)).compare(x, {"codes": codes})
    assert given.dtype == torch.float64
    assert np.array_equal(
        given.numpy(), (codes.astype(np.float64) - 5) * np.float64(np.float32(0.1))
    )
