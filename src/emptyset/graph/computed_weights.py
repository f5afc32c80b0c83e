"""Weights that a network computes of its parameters become parameters of their own.

Weight normalisation, spectral normalisation, weight standardisation (Qiao et al. 2019,
arXiv:1903.10520) and scaled weights give the same weight for every image. A plan quantizes
parameters; of a computed weight it would see none, and the layer would stay in float.
"""

from typing import Any

import torch
from torch import Tensor, fx

from emptyset.graph.nodes import finish, get_parameter, set_parameter
from emptyset.graph.operators import WEIGHTED, attribute, is_parameter, module_path, name_of

# Weight and bias of a convolution or linear.
_POSITIONS = {1: "weight", 2: "bias"}


def computed_weights(graph_module: fx.GraphModule) -> None:
    """Put what layers' weights and biases are computed to in their place; changes it in place.

    A weight that depends on the image stays computed.
    """
    graph = graph_module.graph
    values = _values_without_images(graph_module)
    found: dict[str, tuple[fx.Node, str, str]] = {}
    for node in list(graph.nodes):
        if name_of(node) not in WEIGHTED:
            continue
        for position, kind in _POSITIONS.items():
            source = node.args[position] if len(node.args) > position else None
            if is_parameter(source) or source not in values:
                continue
            path = f"computed_{len(found)}"
            set_parameter(graph_module, path, values[source].detach().clone())
            with graph.inserting_before(node):
                held = get_parameter(graph, path, values[source], like=node)
            node.update_arg(position, held)
            found[path] = held, module_path(node), kind
    if not found:
        return
    finish(graph_module)  # so that the names of what they were computed of are free
    for path, (held, owner, kind) in found.items():
        _rename(graph_module, held, path, f"{owner}.{kind}" if owner else kind)
    finish(graph_module)


def _values_without_images(graph_module: fx.GraphModule) -> dict[Any, Tensor]:
    """Every tensor that is computed of parameters and buffers alone."""
    constant: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in graph_module.graph.nodes:
            if node.op == "get_attr":
                constant[node] = attribute(graph_module, str(node.target))
            elif node.op == "call_function" and _alone(node, constant):
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), constant.__getitem__)
                constant[node] = node.target(*args, **kwargs)
    return {node: value for node, value in constant.items() if isinstance(value, Tensor)}


def _alone(node: fx.Node, constant: dict[fx.Node, Any]) -> bool:
    sources = node.all_input_nodes
    # What changes a parameter in place must not be run here.
    schema = getattr(node.target, "_schema", None)
    pure = schema is None or not schema.is_mutable
    return pure and bool(sources) and all(source in constant for source in sources)


def _rename(graph_module: fx.GraphModule, held: fx.Node, path: str, wanted: str) -> None:
    """Give the parameter the name that a plain layer's has, or the next one that is free."""
    value, number, name = attribute(graph_module, path), 1, wanted
    while (there := _found(graph_module, name)) is not None and not torch.equal(there, value):
        number += 1
        name = f"{wanted}_{number}"
    if there is None:
        set_parameter(graph_module, name, value.detach())
    held.target = name


def _found(graph_module: fx.GraphModule, path: str) -> Tensor | None:
    try:
        value = attribute(graph_module, path)
    except AttributeError:
        return None
    return value if isinstance(value, Tensor) else torch.empty(0)
