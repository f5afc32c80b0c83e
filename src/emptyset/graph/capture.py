"""From a module to a graph of plain operators, with a dynamic batch.

Capture is `torch.export`: no tracing of Python by us, no per-architecture code. The captured graph
is then put into a form in which every value is one tensor and nothing is changed in place, which is
what plans and blocks rely on.
"""

import contextlib
import copy
import io
import traceback
from typing import Any

import torch
from torch import fx, nn

from emptyset.errors import CaptureError
from emptyset.graph.attention import open_attention
from emptyset.graph.computed_weights import computed_weights
from emptyset.graph.disguised_layers import disguised_layers
from emptyset.graph.layer_parameters import own_modules
from emptyset.graph.nodes import call, finish
from emptyset.graph.operators import argument, is_getitem, name_of
from emptyset.graph.plain_operators import plain_operators
from emptyset.quantizers.pt2e import quietly

ATEN = torch.ops.aten
# torch writes an open end of a slice so.
EVERYTHING = 2**63 - 1


def capture(module: nn.Module, example: torch.Tensor) -> fx.GraphModule:
    """Graph of ``module`` in eval mode, for images of the example's size and any batch.

    Args:
        module: The network; it is copied, not changed.
        example: ``(N, C, H, W)``, N >= 2, on the module's device.

    Returns:
        A graph module over aten operators that computes what the module computes.

    Raises:
        CaptureError: If `torch.export` refuses; the message holds its reason and the source line.
    """
    exported = export_dynamic(copy.deepcopy(module).eval(), example)
    with quietly():
        if _writes_through_views(exported.graph):
            exported = exported.run_decompositions({})
        graph_module = exported.module(check_guards=False)
    _restore_batch_norms(graph_module)
    _make_functional(graph_module)
    _single_outputs(graph_module)
    _drop_identities(graph_module)
    disguised_layers(graph_module)
    _merge_equal(graph_module)
    computed_weights(graph_module)
    _explicit_shapes(graph_module)
    plain_operators(graph_module)
    _merge_equal(graph_module)
    open_attention(graph_module)
    own_modules(graph_module)
    finish(graph_module)
    return graph_module


def export_dynamic(module: nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    """Export with a dynamic batch; the strict tracer is the second try.

    Raises:
        CaptureError: If both refuse; the message holds torch's reason and the source line.
    """
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    first: Exception | None = None
    for strict in (False, True):
        try:
            # On failure torch prints the whole graph; the error says what users need.
            with torch.no_grad(), quietly(), contextlib.redirect_stderr(io.StringIO()):
                return torch.export.export(
                    module, (example,), dynamic_shapes=dynamic, strict=strict
                )
        except Exception as error:
            first = first or error
    assert first is not None
    raise CaptureError(
        f"torch.export cannot capture {type(module).__name__} with a dynamic batch.\n"
        f"{_reason(first)}\n"
        "Rewrite that line so that it does not depend on the values of tensors (use torch.where "
        "or a fixed branch) and does not fix the batch size, or pass a wrapper module that calls "
        "the part to quantize."
    ) from first


def _reason(error: Exception) -> str:
    """Torch's first sentence, and the user's line where it happened."""
    text = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = text[0] if text else type(error).__name__
    inside = [line for line in text if ".py" in line and "line" in line and "torch/" not in line]
    frames = traceback.extract_tb(error.__traceback__)
    users = [f for f in frames if "/torch/" not in f.filename and "emptyset" not in f.filename]
    where = ""
    if inside:
        where = f"\n  at {inside[-1]}"
    elif users:
        where = f"\n  at {users[-1].filename}, line {users[-1].lineno}: {users[-1].line}"
    return f"  {type(error).__name__}: {reason}{where}"


def _writes_through_views(graph: fx.Graph) -> bool:
    """Whether something is changed in place of which a view exists, as in ``x[:, :2] += 1``.

    Readers of the other view then see the change too; only torch itself can follow that.
    """
    base: dict[fx.Node, fx.Node] = {}
    viewed: set[fx.Node] = set()
    for node in graph.nodes:
        if is_getitem(node) and node.args[0] in base:
            base[node] = base[node.args[0]]
        if not isinstance(node.target, torch._ops.OpOverload) or not node.args:
            continue
        source, schema = node.args[0], node.target._schema
        if not isinstance(source, fx.Node):
            continue
        if schema.is_mutable:
            if source in base or source in viewed:
                return True
        elif any(value.alias_info is not None for value in schema.returns):
            base[node] = base.get(source, source)
            viewed.add(base[node])
    return False


def _restore_batch_norms(graph_module: fx.GraphModule) -> None:
    """Give a BatchNorm that torch took apart its plain form back."""
    for node in list(graph_module.graph.nodes):
        source = node.args[0] if is_getitem(node) else None
        if not isinstance(source, fx.Node) or node.args[1] != 0:
            continue
        if name_of(source) != "_native_batch_norm_legit_no_training":
            continue
        x, weight, bias, mean, var, momentum, epsilon = source.args
        arguments = (x, weight, bias, mean, var, False, momentum, epsilon, False)
        with graph_module.graph.inserting_before(node):
            new = call(graph_module.graph, ATEN.batch_norm.default, arguments, source)
        node.replace_all_uses_with(new)
        graph_module.graph.erase_node(node)


def _make_functional(graph_module: fx.GraphModule) -> None:
    """Replace ``relu_(x)`` and its like by ``relu(x)``; later readers of x then read the result."""
    graph = graph_module.graph
    order = {node: position for position, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        kind = name_of(node)
        if not kind.endswith("_") or kind.startswith("_") or not node.args:
            continue
        functional = getattr(getattr(ATEN, kind[:-1], None), node.target._overloadname, None)
        changed = node.args[0]
        if functional is None or not isinstance(changed, fx.Node):
            continue
        node.target = functional
        for user in list(changed.users):
            if user is not node and order[user] > order[node]:
                user.replace_input_with(changed, node)


def _single_outputs(graph_module: fx.GraphModule) -> None:
    """Replace ``unbind``, ``split`` and ``chunk`` followed by getitem by select and slice."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        source = node.args[0] if is_getitem(node) else None
        if not isinstance(source, fx.Node):
            continue
        kind = name_of(source)
        if kind not in {"unbind", "split", "split_with_sizes", "chunk", "tensor_split"}:
            continue
        tensor, index = source.args[0], node.args[1]
        assert isinstance(tensor, fx.Node)
        axis = _axis(source, kind)
        if not isinstance(index, int):
            continue
        with graph.inserting_before(node):
            if kind == "unbind":
                new = call(graph, ATEN.select.int, (tensor, axis, index), node)
            else:
                sizes = [part.shape[axis] for part in source.meta["val"]]
                if not all(isinstance(size, int) for size in sizes):
                    continue
                start = sum(sizes[:index])
                stop = start + sizes[index]
                new = call(graph, ATEN.slice.Tensor, (tensor, axis, start, stop), node)
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def _axis(node: fx.Node, kind: str) -> int:
    position = 1 if kind == "unbind" else 2
    axis = node.args[position] if len(node.args) > position else node.kwargs.get("dim", 0)
    return int(axis)  # type: ignore[arg-type]


def _drop_identities(graph_module: fx.GraphModule) -> None:
    """Dropout in eval mode, aliases, detaches and slices of everything hand their input on."""
    dropouts = {"dropout", "feature_dropout"}
    same = {*dropouts, "alias", "detach", "lift_fresh_copy"}
    for node in list(graph_module.graph.nodes):
        if name_of(node) in dropouts and argument(node, 2) and argument(node, 1):
            raise CaptureError(
                "the network drops values at random in evaluation too, so it has no answer that a "
                "file could give: F.dropout without training=self.training does that."
            )
        if name_of(node) in same or _takes_everything(node):
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)


def _takes_everything(node: fx.Node) -> bool:
    """Whether a slice leaves nothing out, as the first of the two in ``x[:, 2:]`` does."""
    if name_of(node) != "slice":
        return False
    axis, start, stop = (argument(node, position) for position in (1, 2, 3))
    source: Any = node.args[0]
    everything = stop in (None, EVERYTHING, source.meta["val"].shape[axis or 0])
    return bool(start in (None, 0) and everything and argument(node, 4) in (None, 1))


def _explicit_shapes(graph_module: fx.GraphModule) -> None:
    """``x.reshape_as(y)`` reads no value of y: only its shape, which is given instead.

    A view is refused where memory lies otherwise than at capture, as channels last. A reshape gives
    the same, whatever the memory.
    """
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.target in (ATEN.view.default, ATEN._unsafe_view.default):
            node.target = ATEN.reshape.default
        other = argument(node, 1)
        if name_of(node) not in {"reshape_as", "view_as", "expand_as"}:
            continue
        kind = ATEN.expand.default if name_of(node) == "expand_as" else ATEN.reshape.default
        with graph.inserting_before(node):
            shape = [
                size if isinstance(size, int) else call(graph, ATEN.sym_size.int, (other, i), node)
                for i, size in enumerate(other.meta["val"].shape)
            ]
            new = call(graph, kind, (node.args[0], shape), node)
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def _merge_equal(graph_module: fx.GraphModule) -> None:
    """Let two equal calls on equal inputs be one, as the exporter of the file does."""
    first: dict[Any, fx.Node] = {}
    for node in list(graph_module.graph.nodes):
        if node.op not in ("get_attr", "call_function") or _is_random(node):
            continue
        key = repr((node.op, str(node.target), node.args, sorted(node.kwargs.items())))
        if key in first:
            node.replace_all_uses_with(first[key])
            graph_module.graph.erase_node(node)
        else:
            first[key] = node


def _is_random(node: fx.Node) -> bool:
    tags: list[Any] = getattr(node.target, "tags", [])
    return torch.Tag.nondeterministic_seeded in tags
