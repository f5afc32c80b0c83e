"""Weights that a network computes of its parameters become parameters of their own.

Weight normalisation, spectral normalisation, weight standardisation (Qiao et al. 2019,
arXiv:1903.10520) and scaled weights give the same weight for every image. A plan quantizes
parameters; of a computed weight it would see none, and the layer would stay in float. Likewise a
BatchNorm's factors may be computed (of their absolute values, of 1 + weight), or its statistics cut
to the channels that are used: what folds it reads parameters.
"""

from typing import Any

import torch
from torch import Tensor, fx

from emptyset.graph.nodes import finish, get_parameter, set_buffer, set_parameter
from emptyset.graph.operators import WEIGHTED, attribute, is_parameter, module_path, name_of

# Under this key a node tells the path of its layer, where that is not the module's.
LAYER = "layer"
# Of a convolution or linear, by the argument's position.
_LAYER = {1: "weight", 2: "bias"}
_STATISTICS = {3: "running_mean", 4: "running_var"}
_POSITIONS = {**dict.fromkeys(WEIGHTED, _LAYER), "batch_norm": {**_LAYER, **_STATISTICS}}


def computed_weights(graph_module: fx.GraphModule) -> None:
    """Put what parameters of layers and of BatchNorm are computed to in their place.

    Changes the graph in place. A weight that depends on the image stays computed.
    """
    graph = graph_module.graph
    values = _values_without_images(graph_module)
    found: dict[str, tuple[fx.Node, fx.Node, str]] = {}
    for node in list(graph.nodes):
        for position, kind in _POSITIONS.get(name_of(node), {}).items():
            source = node.args[position] if len(node.args) > position else None
            if is_parameter(source) or source not in values:
                continue
            path = f"computed_{len(found)}"
            set_parameter(graph_module, path, values[source].detach().clone())
            with graph.inserting_before(node):
                held = get_parameter(graph, path, values[source], like=node)
            node.update_arg(position, held)
            found[path] = held, node, kind
    if not found:
        return
    finish(graph_module)  # so that the names of what they were computed of are free
    for path, (held, node, kind) in found.items():
        owner = _owner(graph_module, node)
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


def _owner(graph_module: fx.GraphModule, node: fx.Node) -> str:
    """Path of the layer: what it is called elsewhere, unless that is a parameter still in use."""
    named = node.meta.get(LAYER)
    if named is None:
        return module_path(node)
    owner, _, name = str(named).rpartition(".")
    module = dict(graph_module.named_modules()).get(owner)
    taken = module is not None and (name in module._parameters or name in module._buffers)
    return module_path(node) if taken else str(named)


def _rename(graph_module: fx.GraphModule, held: fx.Node, path: str, wanted: str) -> None:
    """Give the parameter the name that a plain layer's has, or the next one that is free."""
    value, number, name = attribute(graph_module, path), 1, wanted
    while (there := _found(graph_module, name)) is not None and not torch.equal(there, value):
        number += 1
        name = f"{wanted}_{number}"
    if there is None:
        # Nothing trains statistics.
        kind = wanted.rpartition(".")[2]
        setter = set_buffer if kind in _STATISTICS.values() else set_parameter
        setter(graph_module, name, value.detach())
    held.target = name


def _found(graph_module: fx.GraphModule, path: str) -> Tensor | None:
    try:
        value = attribute(graph_module, path)
    except AttributeError:
        return None
    return value if isinstance(value, Tensor) else torch.empty(0)
