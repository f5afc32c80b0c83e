"""Names of a student's quantizers."""

from torch import fx

from emptyset.graph.edits import quantizer_of
from emptyset.graph.operators import module_path, name_of
from emptyset.quantizers.affine import AffineFakeQuantizer


def named_quantizers(program: fx.GraphModule) -> dict[str, AffineFakeQuantizer]:
    """Every fake quantizer once, named after the tensor it quantizes.

    ``layer1.0.conv1.weight`` for a weight, ``layer1.0.relu.output`` for an activation,
    ``layer1.0.relu.output.4bit`` for one in series behind it.
    """
    found: dict[str, AffineFakeQuantizer] = {}
    known: dict[int, str] = {}
    for node in program.graph.nodes:
        quantizer = quantizer_of(program, node)
        if quantizer is None or id(quantizer) in known:
            continue
        source = node.args[0]
        assert isinstance(source, fx.Node)
        behind = quantizer_of(program, source)
        if quantizer.name:
            base = quantizer.name  # of a copy, whose graph a refiner may have changed
        elif behind is not None:
            base = f"{known[id(behind)]}.{quantizer.bits}bit"
        elif source.op == "get_attr":
            base = str(source.target)
        elif source.op == "placeholder":
            base = "input"
        else:
            base = f"{module_path(source) or 'network'}.{name_of(source)}.output"
        name, copies = base, 2
        while name in found:
            name, copies = f"{base}.{copies}", copies + 1
        found[name], known[id(quantizer)] = quantizer, name
        quantizer.name = name
    return found
