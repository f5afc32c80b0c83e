"""What runs in float is counted by the types of its operands, whatever it is called."""

from collections.abc import Callable

import pytest
import torch
from between_convolutions import Between
from onnx import TensorProto, helper
from torch import Tensor, nn

from emptyset.exporters.kernels import kernels_of


@pytest.mark.parametrize(
    ("middle", "operators"),
    [
        (nn.SELU(), ["Selu"]),
        (nn.CELU(), ["Celu"]),
        (nn.Threshold(0.1, 0.0), ["LessOrEqual"]),
        (nn.Hardshrink(0.1), ["Abs", "LessOrEqual"]),
        (torch.abs, ["Abs"]),
        (torch.neg, ["Neg"]),
        (lambda x: torch.maximum(x, x.flip(1)), ["Max"]),
        (lambda x: torch.where(x > 0.1, x, -x), ["Greater", "Neg", "Where"]),
        (lambda x: x - x.logsumexp(1, keepdim=True), ["ReduceLogSumExp"]),
        (lambda x: x * torch.arange(10).float().sin(), []),
    ],
    ids=[
        "selu", "celu", "threshold", "hardshrink", "abs", "neg", "maximum", "where", "logsumexp",
        "positions",
    ],
)  # fmt: skip
def test_what_runs_in_float_is_counted(
    middle: Callable[[Tensor], Tensor], operators: list[str], exported
) -> None:
    _, _, artefact = exported(Between(middle))
    found = [fallback.operator for fallback in artefact.fallbacks]
    # The runtime may write one operator with several; those named are among them.
    assert set(operators) <= set(found)
    assert bool(found) == bool(operators)
    assert (artefact.integer_share < 1) == bool(operators)


@pytest.mark.parametrize(
    "middle",
    [
        nn.MaxPool2d(2, 1),
        nn.Upsample(scale_factor=2),
        nn.PixelUnshuffle(1),
        lambda x: x[:, [3, 1, 0, 2, 5, 4], 1:].flip(3),
    ],
    ids=["largest", "repeated", "reordered", "selected"],
)
def test_what_moves_or_picks_codes_is_not(middle: Callable[[Tensor], Tensor], exported) -> None:
    _, _, artefact = exported(Between(middle))
    assert artefact.fallbacks == []
    assert artefact.integer_share == 1.0


def test_types_are_followed_through_the_graph() -> None:
    """Of each kind one node that reads a float, and one that reads something else."""
    nodes = [
        ("Shape", ["images"], "size"),
        ("Add", ["size", "size"], "twice_the_size"),
        ("Cast", ["size"], "size_in_float", {"to": TensorProto.FLOAT}),
        ("Sqrt", ["size_in_float"], "root"),
        ("Cast", ["images"], "whole", {"to": TensorProto.INT32}),
        ("Mul", ["whole", "whole"], "square"),
        ("Greater", ["images", "half"], "bright"),
        ("Not", ["bright"], "dark"),
        ("Where", ["dark", "whole", "square"], "chosen"),
        ("Where", ["dark", "half", "images"], "chosen_in_float"),
        ("Concat", ["chosen_in_float", "images"], "joined", {"axis": 0}),
        ("ReduceMax", ["joined"], "largest"),
        ("Mul", ["half", "half"], "of_constants"),
        ("Add", ["largest", "root"], "sum"),
        ("Add", ["sum", "of_constants"], "logits"),
    ]
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node(op, i, [o], **(a[0] if a else {})) for op, i, o, *a in nodes]
            + [
                helper.make_node("Identity", [name], [f"{name}_out"])
                for name in ("twice_the_size", "chosen")
            ],
            "types",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3])],
            [
                helper.make_tensor_value_info("logits", TensorProto.FLOAT, None),
                helper.make_tensor_value_info("twice_the_size_out", TensorProto.INT64, None),
                helper.make_tensor_value_info("chosen_out", TensorProto.INT32, None),
            ],
            [helper.make_tensor("half", TensorProto.FLOAT, [1], [0.5])],
        ),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    found = {fallback.node for fallback in kernels_of(model.SerializeToString()).fallbacks}
    assert found == {"root", "bright", "chosen_in_float", "largest", "sum", "logits"}
