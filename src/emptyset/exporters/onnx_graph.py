"""An ONNX graph that can be edited: constants, producers, readers, fresh names, order."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper


class OnnxGraph:
    """Nodes and constants of a model, edited freely and written back in a valid order.

    Attributes:
        nodes: Every node, in any order until ``write_back``.
        constants: Initializers by name.
        inputs: Names of the graph's inputs.
        outputs: Names of the graph's outputs.
    """

    def __init__(self, model: ModelProto) -> None:
        graph: GraphProto = model.graph
        self.model = model
        self.nodes: list[NodeProto] = list(graph.node)
        self.constants: dict[str, TensorProto] = {c.name: c for c in graph.initializer}
        for node in [n for n in self.nodes if n.op_type == "Constant" and not n.domain]:
            value = helper.get_node_attr_value(node, node.attribute[0].name)
            if isinstance(value, TensorProto):
                value.name = node.output[0]
                self.constants[node.output[0]] = value
                self.nodes.remove(node)
        self.inputs = [value.name for value in graph.input]
        self.outputs = [value.name for value in graph.output]
        self._counter: Counter[str] = Counter()

    def producer(self, name: str) -> NodeProto | None:
        """The node that gives this value."""
        return self.producers().get(name)

    def producers(self) -> dict[str, NodeProto]:
        """Every value's node."""
        return {output: node for node in self.nodes for output in node.output}

    def readers(self) -> dict[str, list[NodeProto]]:
        """Every value's readers."""
        found: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                found.setdefault(name, []).append(node)
        return found

    def array(self, name: str) -> Any:
        """A constant's values as a numpy array, or None where the value is computed."""
        constant = self.constants.get(name)
        return None if constant is None else numpy_helper.to_array(constant)

    def fresh(self, stem: str) -> str:
        """A value name that is not taken."""
        self._counter[stem] += 1
        return f"{stem}__{self._counter[stem]}"

    def constant(self, stem: str, values: Any) -> str:
        """Add a constant; gives its name. Equal small constants, and zeros, are stored once."""
        array = np.asarray(values)
        if array.ndim == 1 and array.size > 1 and not array.any():
            stem = f"zeros_{array.dtype.name}_{array.size}"
            self.constants.setdefault(stem, numpy_helper.from_array(array, stem))
            return stem
        name = f"{stem}_{array.dtype.name}_{'_'.join(map(str, array.reshape(-1).tolist()))}"
        if array.size > 8 or len(name) > 80:
            name = self.fresh(stem)
        name = name.replace("-", "m").replace(".", "p")
        if name in self.constants and tuple(self.constants[name].dims) != array.shape:
            name = self.fresh(name)
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def add(self, op: str, inputs: Iterable[str], output: str, **attributes: Any) -> str:
        """Add a node; gives its output's name."""
        node = helper.make_node(op, list(inputs), [output], name=f"{op}_{output}", **attributes)
        self.nodes.append(node)
        return output

    def replace_input(self, node: NodeProto, old: str, new: str) -> None:
        """Let ``node`` read ``new`` wherever it read ``old``."""
        for position, name in enumerate(node.input):
            if name == old:
                node.input[position] = new

    def rename_everywhere(self, old: str, new: str) -> None:
        """Every reader of ``old`` reads ``new``."""
        for node in self.nodes:
            self.replace_input(node, old, new)

    def rename_output(self, name: str) -> None:
        """Give the graph's only output this name."""
        old = self.outputs[0]
        for node in self.nodes:
            self.replace_input(node, old, name)
            for position, output in enumerate(node.output):
                if output == old:
                    node.output[position] = name
        self.model.graph.output[0].name = name
        self.outputs = [name]

    def drop_dead(self) -> None:
        """Remove nodes and constants that no output needs."""
        producers = self.producers()
        needed: set[str] = set()
        waiting = list(self.outputs)
        while waiting:
            name = waiting.pop()
            if name in needed or not name:
                continue
            needed.add(name)
            if name in producers:
                waiting.extend(producers[name].input)
        self.nodes = [n for n in self.nodes if any(output in needed for output in n.output)]
        read = {name for node in self.nodes for name in node.input} | set(self.outputs)
        self.constants = {name: c for name, c in self.constants.items() if name in read}

    def write_back(self) -> ModelProto:
        """Put nodes (sorted) and constants into the model; value infos and metadata go."""
        self.drop_dead()
        graph = self.model.graph
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        del graph.metadata_props[:], self.model.metadata_props[:], self.model.functions[:]
        graph.doc_string = self.model.doc_string = ""
        graph.node.extend(self._sorted())
        for name, constant in self.constants.items():
            constant.name, constant.doc_string = name, ""
        graph.initializer.extend(self.constants.values())
        for node in graph.node:
            del node.metadata_props[:]
            node.doc_string = ""
        for value in [*graph.input, *graph.output]:
            del value.metadata_props[:]
            value.doc_string = ""
        return self.model

    def _sorted(self) -> list[NodeProto]:
        known = {*self.constants, *self.inputs, ""}
        missing = {id(n): len({name for name in n.input if name not in known}) for n in self.nodes}
        readers = self.readers()
        ready = [n for n in self.nodes if missing[id(n)] == 0]
        done: list[NodeProto] = []
        while ready:
            node = ready.pop(0)
            done.append(node)
            for output in node.output:
                for reader in readers.get(output, []):
                    missing[id(reader)] -= 1
                    if missing[id(reader)] == 0:
                        ready.append(reader)
        assert len(done) == len(self.nodes), "a rewriting left a value without a producer"
        return done
