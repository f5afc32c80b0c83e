"""The student: the captured graph with fake quantizers placed by a plan."""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, fx

from emptyset.errors import RecipeError, TeacherError, UnknownNameError
from emptyset.graph.batch_norm import fold, freeze
from emptyset.graph.capture import capture
from emptyset.graph.edits import quantizer_of, repeat_edits, round_bias
from emptyset.graph.float_check import require_teachers_logits
from emptyset.graph.operators import (
    attribute,
    layer_path,
    name_of,
    origin_of,
    parameter_of,
    weighted_layers,
)
from emptyset.graph.originals import ORIGINAL, originals_in_place, separated, unlearnt
from emptyset.graph.plans import LayerBits
from emptyset.graph.quantizer_names import named_quantizers
from emptyset.graph.unfused import prepare_unfused
from emptyset.quantizers.affine import LEARNT_ROUNDING
from emptyset.quantizers.bias import BiasFakeQuantizer
from emptyset.quantizers.bits import Bits
from emptyset.quantizers.pt2e import quietly
from emptyset.registry import nearest, plans
from emptyset.teachers.teacher import Teacher

BATCH_NORM_CHOICES = ("fold", "frozen")
CODES = "codes"


@dataclass(frozen=True)
class QuantizedLayer:
    """One convolution or linear of the student.

    Attributes:
        name: Module path, for example ``layer1.0.conv1``.
        operator: For example ``conv2d``.
        weight_shape: Shape of the weight.
        bits: What the plan gave it.
        weight_quantizer: Name of the weight's quantizer.
        input_quantizer: Name of the quantizer of its input, or None: the input is float.
    """

    name: str
    operator: str
    weight_shape: tuple[int, ...]
    bits: LayerBits
    weight_quantizer: str | None
    input_quantizer: str | None


@dataclass
class Student:
    """A prepared network: call it with images, get logits.

    Attributes:
        teacher: The network it was captured from; untouched.
        program: Graph module with fake quantizers as submodules.
        plan: Name of the plan.
        bits: Widths the plan was asked for.
        batch_norm: ``fold`` or ``frozen``.
        integer_biases: Whether biases are rounded to int32 at export.
        layer_bits: What the plan gave each layer, by module path.
        float_inputs: Paths of layers whose input stays float, image and pooled features excepted
            (a published result is only comparable where this is empty).
        settings: Plan settings and overrides, for the record.
        originals: Parameters that training changed, as they were before, by path; the program
            holds the learnt ones.
        records: What refiners have to tell of their work (JSON data), in order; not saved.
        bias_shifts: What analytic bias correction has taken from biases, by layer, so that a
            second one gives it back first; not saved.
        warned: Warnings that were given, each once; not saved.
    """

    teacher: Teacher
    program: fx.GraphModule
    plan: str
    bits: Bits
    batch_norm: str
    integer_biases: bool
    layer_bits: dict[str, LayerBits]
    float_inputs: list[str]
    settings: dict[str, Any] = field(default_factory=dict)
    originals: dict[str, Tensor] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    bias_shifts: dict[str, Tensor] = field(default_factory=dict)
    warned: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.quantizers = named_quantizers(self.program)

    def __call__(self, images: Tensor) -> Tensor:
        """``(N, K)`` logits of ``(N, C, H, W)`` images."""
        logits: Tensor = self.program(images)
        return logits

    def without_ranges(self) -> list[str]:
        """Names of the quantizers that were not calibrated yet."""
        return [name for name, q in self.quantizers.items() if not bool(q.calibrated)]

    @contextlib.contextmanager
    def float_mode(self) -> Iterator[None]:
        """Inside, every quantizer is switched off: the student computes what the teacher does."""
        with self.only_quantizers([]):
            yield

    @contextlib.contextmanager
    def only_layer(self, name: str) -> Iterator[None]:
        """Inside, only this layer's weight and input are quantized, in every call of it.

        Raises:
            UnknownNameError: If no layer has this path.
        """
        layers = self.layers()
        calls = [layer for layer in layers if layer.name == name]
        if not calls:
            known = [layer.name for layer in layers]
            raise UnknownNameError(f"No layer is called '{name}'.{nearest(name, known)}")
        names = [n for call in calls for n in (call.weight_quantizer, call.input_quantizer) if n]
        with self.only_quantizers(names):
            yield

    @contextlib.contextmanager
    def only_quantizers(self, names: list[str]) -> Iterator[None]:
        """Inside, only these quantizers are on, and only their layers have learnt values."""
        everything = set(names) >= self.quantizers.keys()
        floats = {} if everything else unlearnt(self.program, self.originals, names)
        with self._switched(names), originals_in_place(self.program, floats):
            yield

    @contextlib.contextmanager
    def unquantized(self) -> Iterator[None]:
        """Inside, every quantizer is switched off, and all learnt values stay."""
        with self._switched([]):
            yield

    @contextlib.contextmanager
    def _switched(self, names: list[str]) -> Iterator[None]:
        """Inside, only these quantizers are on."""
        before = {name: quantizer.enabled for name, quantizer in self.quantizers.items()}
        try:
            for name, quantizer in self.quantizers.items():
                quantizer.enabled = name in names
            yield
        finally:
            for name, quantizer in self.quantizers.items():
                quantizer.enabled = before[name]

    def layers(self) -> list[QuantizedLayer]:
        """Every convolution and linear, in order of execution."""
        names = {id(q): name for name, q in self.quantizers.items()}
        found = []
        for node in weighted_layers(self.program):
            path = layer_path(node)
            source, weight = origin_of(node.args[0]), node.args[1]
            quantizers = [quantizer_of(self.program, a) for a in (source, weight)]
            found.append(
                QuantizedLayer(
                    path,
                    name_of(node),
                    tuple(self._weight(node).shape),
                    self.layer_bits[path],
                    names[id(quantizers[1])] if quantizers[1] is not None else None,
                    names[id(quantizers[0])] if quantizers[0] is not None else None,
                )
            )
        return found

    def weight_of(self, layer: QuantizedLayer) -> Tensor:
        """The layer's float weight."""
        nodes = {layer_path(node): node for node in weighted_layers(self.program)}
        return self._weight(nodes[layer.name])

    def _weight(self, node: fx.Node) -> Tensor:
        parameter = parameter_of(node.args[1])
        assert parameter is not None
        weight: Tensor = attribute(self.program, str(parameter.target))
        return weight

    def state_dict(self) -> dict[str, Tensor]:
        """Every parameter and buffer once (quantizers under their own names)."""
        state = {
            name: value
            for name, value in self.program.state_dict().items()
            if not name.startswith("activation_post_process_")
        }
        for name, quantizer in self.quantizers.items():
            state |= {f"quantizer:{name}:{k}": v for k, v in quantizer.state_dict().items()}
            # A scale means nothing without the codes that it is for.
            bounds = [quantizer.quant_min, quantizer.quant_max]
            state[f"quantizer:{name}:{CODES}"] = torch.tensor(bounds)
        state |= {f"{ORIGINAL}{path}": value for path, value in self.originals.items()}
        return {name: value.detach().clone().contiguous() for name, value in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``state_dict`` gave.

        Raises:
            TeacherError: If names, shapes or codes differ: another network, plan or bit width.
        """
        state, originals = separated(state)
        repeat_edits(self.program, state, integer_biases=self.integer_biases)
        own, _ = separated(self.state_dict())
        known = {name for name in own if not _is_learnt_rounding(name)}
        extra = sorted(n for n in state.keys() - known if not _is_learnt_rounding(n))
        extra += sorted(originals.keys() - known)
        missing = sorted(known - state.keys())
        if missing or extra:
            raise TeacherError(
                f"This state is of another student: {len(missing)} tensors are missing (first: "
                f"{missing[:2]}), {len(extra)} are not known here (first: {extra[:2]}). Load it "
                "with the teacher, plan and bits that it was saved with."
            )
        given = [*state.items(), *originals.items()]
        other = [name for name, value in given if name in own and not _fits(name, own[name], value)]
        if other:
            raise TeacherError(
                f"This state is of another student: {len(other)} tensors have other codes or "
                f"another shape (first: '{other[0]}'). Load it with the teacher, plan and bits "
                "that it was saved with."
            )
        for name, quantizer in self.quantizers.items():
            prefix = f"quantizer:{name}:"
            part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            del part[CODES]
            quantizer.load_state_dict(part)
        rest = {k: v for k, v in state.items() if not k.startswith("quantizer:")}
        self.program.load_state_dict(rest, strict=False)
        self.originals = {k: v.detach().clone().to(self.device) for k, v in originals.items()}

    def save(self, path: Path) -> None:
        """Write the state as safetensors, aside and renamed."""
        aside = path.with_name(f".{path.name}.part")
        save_file(self.state_dict(), aside)
        aside.replace(path)

    def load_state(self, path: Path) -> None:
        """Read what ``save`` wrote.

        Raises:
            TeacherError: If the file is truncated or of another student.
        """
        try:
            state = load_file(path)
        except (OSError, SafetensorError) as error:
            raise TeacherError(f"{path}: not a readable student ({error}).") from error
        self.load_state_dict(state)

    @property
    def device(self) -> torch.device:
        """Where it was captured, and runs."""
        return self.teacher.example(1).device

    def on_cpu(self) -> "Student":
        """A copy on the CPU: a graph holds its device, so the network is captured there anew."""
        if self.device.type == "cpu":
            return self.copy()
        module = copy.deepcopy(self.teacher.module).cpu()
        placed = prepare(
            replace(self.teacher, module=module), self.bits, plan=self.plan,
            batch_norm=self.batch_norm, overrides=self.settings["overrides"],
            plan_settings=self.settings["settings"],
        )  # fmt: skip
        placed.load_state_dict({name: value.cpu() for name, value in self.state_dict().items()})
        return placed

    def copy(self) -> "Student":
        """An independent student with the same state."""
        with quietly():
            program = copy.deepcopy(self.program)
        return Student(
            self.teacher, program, self.plan, self.bits, self.batch_norm,
            self.integer_biases, dict(self.layer_bits), list(self.float_inputs), self.settings,
            dict(self.originals), list(self.records), dict(self.bias_shifts),
        )  # fmt: skip


def prepare(
    teacher: Teacher,
    bits: str | Bits,
    *,
    plan: str = "integer",
    batch_norm: str = "fold",
    overrides: Mapping[str, str] | None = None,
    plan_settings: Mapping[str, Any] | None = None,
) -> Student:
    """Capture the teacher and place the plan's fake quantizers; ranges are still unset.

    Args:
        teacher: The network; untouched.
        bits: For example ``w4a8``.
        plan: ``integer``, ``every_layer`` or ``edges_8bit``.
        batch_norm: ``fold`` or ``frozen`` (not with plan `integer`).
        overrides: Bits by pattern of module path, for example ``{"layer1.*": "w8a8"}``.
        plan_settings: Settings of the plan.

    Raises:
        CaptureError: If the network cannot be captured, or what was captured computes something
            else.
        RecipeError: If a setting is wrong (BitsError, UnknownNameError likewise).
    """
    bits = Bits.parse(bits)
    entry = plans.get(plan)
    if batch_norm not in BATCH_NORM_CHOICES:
        raise RecipeError(
            f"plan.batch_norm: expected one of {', '.join(BATCH_NORM_CHOICES)}. Got '{batch_norm}'."
        )
    if batch_norm == "frozen" and plan == "integer":
        raise RecipeError(
            "plan.batch_norm: plan 'integer' quantizes folded weights, as its file stores them. "
            "Use batch_norm 'fold', or plan 'every_layer' or 'edges_8bit'."
        )
    settings = dict(plan_settings or {})
    try:
        config = entry.config(**settings)
    except TypeError as error:
        known = ", ".join(entry.config.__dataclass_fields__)
        raise RecipeError(f"plan '{plan}': {error}. Settings: {known or 'none'}.") from error
    program = capture(teacher.module, teacher.example())
    fold(program) if batch_norm == "fold" else freeze(program)
    quantizer = entry.make(config).quantizer(bits, overrides or {})
    prepared = prepare_unfused(program, quantizer)
    if quantizer.integer_biases:
        _round_biases(prepared)
    layer_bits = {layer_path(node): given for node, given in quantizer.layers.items()}
    student = Student(
        teacher, prepared, plan, bits, batch_norm, quantizer.integer_biases, layer_bits,
        list(quantizer.float_inputs), {"settings": settings, "overrides": dict(overrides or {})},
    )  # fmt: skip
    with student.float_mode():
        require_teachers_logits(prepared, teacher)
    return student


def _is_learnt_rounding(name: str) -> bool:
    """Whether the saved tensor is one that only a weight of learnt rounding has."""
    return name.startswith("quantizer:") and name.rpartition(":")[2] in LEARNT_ROUNDING


def _fits(name: str, own: Tensor, value: Tensor) -> bool:
    """Whether a saved tensor can replace this one."""
    if not name.startswith("quantizer:"):
        return own.shape == value.shape
    # Scales per channel get their length at calibration.
    return not name.endswith(f":{CODES}") or bool(torch.equal(own.cpu(), value.cpu()))


def _round_biases(program: fx.GraphModule) -> None:
    """Put a bias quantizer before every layer whose input and weight are quantized."""
    for node in weighted_layers(program):
        round_bias(program, node)
    program.recompile()


def remove_bias_quantizers(program: fx.GraphModule) -> None:
    """Undo what plan `integer` put before biases; conversion rounds them itself."""
    for node in list(program.graph.nodes):
        if node.op != "call_module":
            continue
        if isinstance(program.get_submodule(str(node.target)), BiasFakeQuantizer):
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
    program.delete_all_unused_submodules()
    program.recompile()
