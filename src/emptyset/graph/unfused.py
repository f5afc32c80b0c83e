"""PT2E's two steps without the folding of BatchNorm that torchao does inside them.

torchao folds every BatchNorm that reads a convolution or linear, whoever else reads that layer or
shares its weight. `batch_norm.fold` has folded what can be folded; what it left must stay. In the
second step torchao looks for 96 patterns, which takes longer than all else, for BatchNorms of its
own kind of training, which nothing here does.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import fx

from emptyset.quantizers.pt2e import convert_pt2e, prepare_pt2e, quietly

FUSERS = ("_fuse_conv_bn_", "_fuse_linear_bn_")
FOLDER = "_fold_conv_bn_qat"


def prepare_unfused(graph_module: fx.GraphModule, quantizer: Any) -> fx.GraphModule:
    """The graph with the fake quantizers that the quantizer annotates; BatchNorm stays as it is."""
    with quietly(), _replaced(prepare_pt2e.__globals__, FUSERS, lambda _: None):
        prepared: fx.GraphModule = prepare_pt2e(graph_module, quantizer)
    return prepared


def convert_unfused(graph_module: fx.GraphModule) -> fx.GraphModule:
    """A prepared graph with quantize and dequantize nodes for its fake quantizers."""
    with quietly(), _replaced(convert_pt2e.__globals__, (FOLDER,), lambda program: program):
        converted: fx.GraphModule = convert_pt2e(graph_module)
    return converted


@contextlib.contextmanager
def _replaced(
    names: dict[str, Any], functions: tuple[str, ...], stand_in: Callable[[Any], Any]
) -> Iterator[None]:
    """Inside, these functions of a module of torchao do nothing."""
    before = {name: names[name] for name in functions}
    try:
        names.update(dict.fromkeys(functions, stand_in))
        yield
    finally:
        names.update(before)
