"""Weights that a network computes of its parameters become parameters of their own.

Weight normalisation, spectral normalisation, weight standardisation (Qiao et al. 2019,
arXiv:1903.10520) and scaled weights give the same weight for every image. A plan quantizes
parameters; of a computed weight it would see none, and the layer would stay in float. Likewise a
BatchNorm's factors may be computed (of their absolute values, of 1 + weight), or its statistics cut
to the channels that are used: what folds it reads parameters.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from emptyset.graph.nodes import finish, get_parameter, set_buffer, set_parameter
from emptyset.graph.operators import WEIGHTED, attribute, is_parameter, module_path, name_of

# Under this key a node tells the path of its layer, where that is not the module's.
LAYER = "layer"
# Of a convolution or linear, by the argument's position.
_LAYER = {1: "weight", 2: "bias"}
_STATISTICS = {3: "running_mean", 4: "running_var"}
_POSITIONS = {**dict.fromkeys(WEIGHTED, _LAYER), "batch_norm": {**_LAYER, **_STATISTICS}}


@dataclass
class _Computed:
    """Where one computed value is read from now on.

    Attributes:
        path: Of the new parameter, until its name is free.
        layer: The first that reads it.
        kind: What it is to that layer, for example ``weight``.
        held: Every node that reads the new parameter.
        fixed: Whether it is computed of buffers alone, or a statistic: nothing trains it.
    """

    path: str
    layer: fx.Node
    kind: str
    fixed: bool
    held: list[fx.Node] = field(default_factory=list)


def computed_weights(graph_module: fx.GraphModule) -> None:
    """Put what parameters of layers and of BatchNorm are computed to in their place.

    Changes the graph in place. A weight that depends on the image stays computed.
    """
    graph = graph_module.graph
    values = values_without_images(graph_module)
    found: dict[fx.Node, _Computed] = {}
    for node in list(graph.nodes):
        if node in values:
            continue  # itself a part of a weight
        for position, kind in _POSITIONS.get(name_of(node), {}).items():
            source = node.args[position] if len(node.args) > position else None
            if not isinstance(source, fx.Node) or is_parameter(source) or source not in values:
                continue
            if source not in found:
                fixed = kind in _STATISTICS.values() or _of_buffers(graph_module, source)
                found[source] = _Computed(f"computed_{len(found)}", node, kind, fixed)
                value = values[source].detach().clone()
                set_parameter(graph_module, found[source].path, value)
            with graph.inserting_before(node):
                held = get_parameter(graph, found[source].path, values[source], like=node)
            node.update_arg(position, held)
            found[source].held.append(held)
    if not found:
        return
    finish(graph_module)  # so that the names of what they were computed of are free
    for source, computed in found.items():
        value, name = values[source].detach().clone(), _free_path(graph_module, computed)
        (set_buffer if computed.fixed else set_parameter)(graph_module, name, value)
        for held in computed.held:
            held.target = name
    finish(graph_module)


def values_without_images(graph_module: fx.GraphModule) -> dict[fx.Node, Tensor]:
    """Every tensor that is computed of parameters and buffers alone, these among them."""
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


def _of_buffers(graph_module: fx.GraphModule, source: fx.Node) -> bool:
    waiting, seen = [source], set[fx.Node]()
    while waiting:
        node = waiting.pop()
        if node.op == "get_attr" and isinstance(
            attribute(graph_module, str(node.target)), nn.Parameter
        ):
            return False
        waiting.extend(one for one in node.all_input_nodes if one not in seen)
        seen.update(node.all_input_nodes)
    return True


def _free_path(graph_module: fx.GraphModule, computed: _Computed) -> str:
    """The name that a plain layer's parameter has, or the next one that is free."""
    named, kind = computed.layer.meta.get(LAYER), computed.kind
    owner, number = str(named or module_path(computed.layer)), 1
    path = f"{owner}.{kind}" if owner else kind
    while not _is_free(graph_module, path):
        number += 1
        if named is not None:
            path = f"{owner}_{number}.{kind}"
        else:
            path = f"{owner}.{kind}_{number}" if owner else f"{kind}_{number}"
    return path


def _is_free(graph_module: fx.GraphModule, path: str) -> bool:
    """Whether nothing is there, and no parameter on the way."""
    found: Any = graph_module
    for part in path.split("."):
        if isinstance(found, Tensor):
            return False
        if not hasattr(found, part):
            return True
        found = getattr(found, part)
    return False
