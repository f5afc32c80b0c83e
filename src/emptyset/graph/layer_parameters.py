"""Every layer's weight lies at ``LAYER.weight``, so that a layer has a place of its own.

A refiner may give a layer a bias or notes of its own at ``LAYER.bias``. Attention's packed weights,
blur filters and weights of functional calls are parameters that no module of one layer holds.
"""

from torch import Tensor, fx, nn

from emptyset.graph.nodes import set_buffer, set_parameter
from emptyset.graph.operators import attribute, parameter_of, weighted_layers


def own_modules(graph_module: fx.GraphModule) -> None:
    """Move ``PATH`` to ``PATH.weight`` where a layer's weight has another name; in place.

    The layer keeps its name. What else reads the parameter reads it at its new place.
    """
    moved: dict[str, str] = {}
    for node in weighted_layers(graph_module):
        weight = parameter_of(node.args[1])
        assert weight is not None
        path = str(weight.target)
        if not path.endswith(".weight"):
            moved[path] = f"{path}.weight"
    for path, new in moved.items():
        _move(graph_module, path, new)
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            node.target = moved.get(str(node.target), node.target)


def _move(graph_module: fx.GraphModule, path: str, new: str) -> None:
    value: Tensor = attribute(graph_module, path)
    owner_path, _, name = path.rpartition(".")
    owner = graph_module.get_submodule(owner_path)
    delattr(owner, name)
    is_parameter = isinstance(value, nn.Parameter)
    (set_parameter if is_parameter else set_buffer)(graph_module, new, value.detach())
