"""Inserting and removing nodes of a captured graph, with shapes kept up to date."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor


def finish(graph_module: fx.GraphModule) -> None:
    """Remove dead nodes and unused parameters, check, recompile."""
    graph_module.graph.eliminate_dead_code()
    graph_module.delete_all_unused_submodules()
    used = {str(n.target) for n in graph_module.graph.nodes if n.op == "get_attr"}
    for owner_path, owner in list(graph_module.named_modules()):
        for name in [*owner._parameters, *owner._buffers]:
            path = f"{owner_path}.{name}" if owner_path else name
            if path not in used:
                delattr(owner, name)
    graph_module.graph.lint()
    graph_module.recompile()


def call(graph: fx.Graph, target: Any, arguments: tuple[Any, ...], like: fx.Node) -> fx.Node:
    """Insert a call before the current insertion point, with shape and origin filled in."""
    node = graph.call_function(target, arguments)
    node.meta = {k: v for k, v in like.meta.items() if k in ("nn_module_stack", "stack_trace")}
    values = fx.node.map_arg(arguments, lambda n: n.meta["val"])
    fakes = [a.meta["val"] for a in node.all_input_nodes]
    mode = next((f.fake_mode for f in fakes if isinstance(f, FakeTensor)), None)
    if mode is not None:
        with mode:
            node.meta["val"] = target(*values)
    return node


def rewrite(graph: fx.Graph, plainer: Callable[[fx.Node], fx.Node | None]) -> int:
    """Put what ``plainer`` makes of a node in its place, None: it stays; gives how many."""
    changed = 0
    for node in list(graph.nodes):
        with graph.inserting_before(node):
            new = plainer(node)
        if new is not None:
            node.replace_all_uses_with(new)
            graph.erase_node(node)
            changed += 1
    return changed


def set_parameter(graph_module: nn.Module, path: str, value: Tensor) -> None:
    """Make ``value`` the parameter at a dotted path; the modules on the path are made.

    Where a buffer is, it stays one.
    """
    owner, name = _owner(graph_module, path)
    if name in owner._buffers:
        owner._buffers[name] = value
        return
    owner.register_parameter(name, nn.Parameter(value, requires_grad=False))


def set_buffer(graph_module: nn.Module, path: str, value: Tensor) -> None:
    """Make ``value`` the buffer at a dotted path; the modules on the path are made."""
    owner, name = _owner(graph_module, path)
    owner.register_buffer(name, value)


def _owner(graph_module: nn.Module, path: str) -> tuple[nn.Module, str]:
    *owners, name = path.split(".")
    owner = graph_module
    for part in owners:
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    return owner, name


def get_parameter(graph: fx.Graph, path: str, value: Tensor, *, like: fx.Node) -> fx.Node:
    """A get_attr node with its shape filled in."""
    node = graph.create_node("get_attr", path)
    mode = like.meta["val"].fake_mode
    node.meta["val"] = mode.from_tensor(value, static_shapes=True)
    return node
