"""PT2E's preparation without the folding of BatchNorm that torchao does inside it.

torchao folds every BatchNorm that reads a convolution or linear, whoever else reads that layer or
shares its weight. `batch_norm.fold` has folded what can be folded; what it left must stay.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import fx

from emptyset.quantizers.pt2e import prepare_pt2e, quietly

FUSERS = ("_fuse_conv_bn_", "_fuse_linear_bn_")


def prepare_unfused(graph_module: fx.GraphModule, quantizer: Any) -> fx.GraphModule:
    """The graph with the fake quantizers that the quantizer annotates; BatchNorm stays as it is."""
    with quietly(), _without_fusers():
        prepared: fx.GraphModule = prepare_pt2e(graph_module, quantizer)
    return prepared


@contextlib.contextmanager
def _without_fusers() -> Iterator[None]:
    """Inside, torchao's own folding does nothing."""
    names: dict[str, Any] = prepare_pt2e.__globals__
    before = {name: names[name] for name in FUSERS}
    try:
        names.update(dict.fromkeys(FUSERS, lambda _: None))
        yield
    finally:
        names.update(before)
