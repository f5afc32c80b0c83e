"""Walks down a student's chain of blocks and learns each from what the block before it gives."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from emptyset.errors import ImagesError, NotCalibratedError
from emptyset.graph.bias_range import keep_biases_in_int32
from emptyset.graph.operators import is_weighted
from emptyset.graph.room import bytes_held
from emptyset.graph.student import Student
from emptyset.images.image_source import Images
from emptyset.monitor import Monitor, State
from emptyset.reconstruction.caches import CacheRoom, Rows
from emptyset.reconstruction.config import Course
from emptyset.reconstruction.execution import Execution, Steps, Work, in_half, worth_compiling
from emptyset.reconstruction.fisher import write_sensitivity
from emptyset.reconstruction.graph_function import GraphFunction
from emptyset.reconstruction.image_axis import blocks_by_image
from emptyset.reconstruction.memory import cache_limit, measured_sizes, reads_float
from emptyset.reconstruction.notes import (
    Told,
    note_errors,
    note_images,
    note_sizes,
    note_unweighted,
)
from emptyset.reconstruction.optimisation import Optimisation
from emptyset.reconstruction.outcome import Snapshot, install, present_outcome, switched
from emptyset.reconstruction.passes import forward, require_finite
from emptyset.reconstruction.range_search import search_ranges
from emptyset.reconstruction.unit_tensors import UnitRows
from emptyset.reconstruction.units import Unit, units_of, weight_paths

Stretch = Callable[[Tensor], Tensor]


def reconstruct(
    student: Student, images: Images, course: Course, *, seed: int, monitor: Monitor
) -> list[Told]:
    """Learn every block of a student, in place; originals are kept for float mode.

    Args:
        student: Calibrated.
        images: What it is learnt from; every block looks at all of them.
        course: What is learnt, by which rule.
        seed: Of everything random.
        monitor: Hears of progress and sizes; keeps what was learnt, so that a killed run goes on.

    Returns:
        Per unit its error before and after.

    Raises:
        ImagesError: If there are no images, or they are no stored set.
        NotCalibratedError: If a quantizer has no range yet.
        CollapseError: If a block diverged; it then has its best state.
        CaptureError: If the network's output does not count images.
    """
    if not isinstance(images, Images):
        raise ImagesError(
            f"{course.name}: every block looks at all images, so they must be a stored set or a "
            f"folder. Got {type(images).__name__}. Draw a set from it first."
        )
    if len(images) == 0:
        raise ImagesError(f"{course.name}: there are no images. Give at least one.")
    unset = student.without_ranges()
    if unset:
        raise NotCalibratedError(
            f"{course.name}: {len(unset)} quantizers have no range yet (first: '{unset[0]}'). Run "
            "the refiner 'calibrate' on some images first."
        )
    # So that later raises of weight scales follow from what a unit learns, and from nothing else.
    keep_biases_in_int32(student)
    if course.search_images:
        search_ranges(student, images, course.search_images, course.config.batch_size)
    told = Chain(student, images, course, seed, monitor).run()
    note_errors(course.name, told, monitor)
    return told


class Chain:
    """One walk."""

    def __init__(
        self, student: Student, images: Images, course: Course, seed: int, monitor: Monitor
    ) -> None:
        self._student, self._images, self._course = student, images, course
        self._seed, self._monitor = seed, monitor
        self._blocks = blocks_by_image(student)
        self._units = [units_of(student, b, by_layer=course.by_layer) for b in self._blocks]
        self._sizes = measured_sizes(student, self._blocks, self._units)
        self._batch = min(course.config.batch_size, len(images))
        self._steps = Steps(course.name, monitor)
        self._told: list[Told] = []
        self._first_weights = _weights_before_rounding(student)
        self._count = sum(map(len, self._units))

    def run(self) -> list[Told]:
        """All units, or those that are left after a kill."""
        course, monitor = self._course, self._monitor
        if monitor.restore(f"{course.name}.done") is not None:
            kept = [monitor.restore(self._key(index)) for index in range(self._count)]
            return [self._take_over(index, state or {}) for index, state in enumerate(kept)]
        note_images(course.name, self._student, self._images, self._course.config, monitor)
        note_unweighted(course, self._blocks, self._units, monitor)
        self._functions, self._compiled = self._decide()
        config = course.config
        limit = cache_limit(
            self._student, self._sizes, course,
            memory=config.memory, batch=self._batch, images=bytes_held(self._images),
        )  # fmt: skip
        note_sizes(course, self._blocks, self._sizes, len(self._images), limit, monitor)
        device = self._student.device
        with CacheRoom(limit, half=config.half_caches, device=device) as room:
            self._walk(room)
        monitor.keep(f"{course.name}.done", lambda: {"done": torch.tensor(True)}, final=True)
        return self._told

    # The walk --------------------------------------------------------------------------------

    def _walk(self, room: CacheRoom) -> None:
        course, size = self._course, self._course.config.batch_size
        x = quantized = self._stored_images(room)
        for number, block in enumerate(self._blocks):
            y = self._room(room, self._sizes[number].output)
            with self._student.float_mode():
                forward(block.module, x, y, size)
            require_finite(y, size, f"{course.name}: what block '{block.name}' should give")
            needed = reads_float(course, self._sizes[number])
            if not needed and x is not quantized:
                room.free(x)
            for unit in self._units[number]:
                self._one(room, number, unit, x, quantized, y)
            if needed and x is not quantized:
                room.free(x)
            following = y
            if course.inputs != "float" and number + 1 < len(self._blocks):
                following = self._room(room, self._sizes[number].output)
                with switched(self._student, activations=course.prefix_activations):
                    forward(block.module, quantized, following, size)
            room.free(quantized)
            x, quantized = y, following

    def _one(
        self, room: CacheRoom, number: int, unit: Unit, x: Rows, quantized: Rows, y: Rows
    ) -> None:
        """One unit: take over what an earlier run learnt, or learn it."""
        index, monitor = len(self._told), self._monitor
        if (state := monitor.restore(self._key(index))) is not None:
            self._told.append(self._take_over(index, state))
            return
        made: list[Rows] = []
        course = self._course
        if unit.body is self._blocks[number].module:
            rows = UnitRows(quantized, x if course.inputs == "mixed" else None, y, None)
            if course.weighting != "none":
                made.append(self._sensitivity(room, number, quantized, y))
                rows = replace(rows, weighting=made[-1])
            if course.inputs == "float":
                rows = replace(rows, x=x)
        else:
            # Distances of a single layer's outputs are never weighted.
            course = replace(course, weighting="none")
            rows = self._layer_rows(room, made, unit, x, quantized)
        self._told.append(self._learn(index, unit, rows, course))
        for one in made:
            room.free(one)

    def _sensitivity(self, room: CacheRoom, number: int, quantized: Rows, y: Rows) -> Rows:
        course, size = self._course, self._course.config.batch_size
        found = self._room(room, self._sizes[number].output)
        with switched(self._student, activations=course.activations):
            forward(self._blocks[number].module, quantized, found, size)
        behind = self._blocks[number + 1 :]
        write_sensitivity(self._student, behind, found, y, found, size)
        return found

    def _layer_rows(
        self, room: CacheRoom, made: list[Rows], unit: Unit, x: Rows, quantized: Rows
    ) -> UnitRows:
        """Inputs and targets of a layer, from those of its block.

        What stands before a layer in its block runs again for each one: in a block of n layers n/2
        of them on average, per image and network. That is little beside thousands of steps.
        """
        course, size = self._course, self._course.config.batch_size
        lead: Stretch = unit.lead if unit.lead is not None else lambda t: t
        sizes = next(
            s for block, inside in zip(self._sizes, self._units, strict=True)
            for s, other in zip(block.units, inside, strict=True) if other is unit
        )  # fmt: skip
        y = self._room(room, sizes.output)
        made.append(y)
        own, own_float = quantized, x
        with self._student.float_mode():
            forward(lambda t: unit.body(lead(t)), x, y, size)
            if unit.lead is not None and course.inputs != "quantized":
                own_float = self._room(room, sizes.input)
                made.append(own_float)
                forward(unit.lead, x, own_float, size)
        if unit.lead is not None and course.inputs != "float":
            own = self._room(room, sizes.input)
            made.append(own)
            with switched(self._student, activations=course.prefix_activations):
                forward(unit.lead, quantized, own, size)
        if course.inputs == "float":
            return UnitRows(own_float, None, y, None)
        return UnitRows(own, own_float if course.inputs == "mixed" else None, y, None)

    # A unit ----------------------------------------------------------------------------------

    def _learn(self, index: int, unit: Unit, rows: UnitRows, course: Course) -> Told:
        student, monitor = self._student, self._monitor
        before = Snapshot.of(student, unit)
        work = Optimisation(
            student, unit, rows, course, seed=self._unit_seed(index),
            function=self._functions[index], originals=self._first_weights,
            is_compiled=self._compiled[index],
        )  # fmt: skip
        start = work.error()
        total, base = self._count * course.steps, index * course.steps

        def advance(done: int) -> None:
            detail = f"{unit.name}, {index + 1} of {self._count}"
            monitor.advance(course.name, base + done, total, detail)

        flat = work.run(self._steps, monitor, f"{course.name}.now{index:04d}", advance)
        install(student, work.learnables.outcome(flat))
        final = work.error()
        kept = final <= start
        if not kept:
            before.restore(student)
            if any(student.quantizers[name].rounding is None for name in unit.weights):
                install(student, work.learnables.outcome(work.learnables.start))
        told = Told(unit.name, start, final if kept else start, kept, work.done)
        if course.steps:
            advance(course.steps)
        monitor.keep(
            self._key(index), lambda: present_outcome(student, unit) | told.state(), final=True
        )
        return told

    def _take_over(self, index: int, state: State) -> Told:
        """Give the student what an earlier run learnt of this unit."""
        install(self._student, state)
        unit = [unit for inside in self._units for unit in inside][index]
        return Told.of(unit.name, state)

    def _key(self, index: int) -> str:
        return f"{self._course.name}.unit{index:04d}"

    def _unit_seed(self, index: int) -> int:
        # The random words of a unit's chunks take the numbers that follow.
        return (self._seed * 1_000_003 + index) * 1_000_003 % 2**62

    # Decisions and room ----------------------------------------------------------------------

    def _decide(self) -> tuple[list[GraphFunction], tuple[bool, ...]]:
        """Functions of all units and which are compiled; what a killed run decided stays."""
        student, course = self._student, self._course
        units = [unit for inside in self._units for unit in inside]
        sizes = [s for block in self._sizes for s in block.units]
        state = self._monitor.restore(f"{course.name}.execution")
        known = Execution.from_state(state) if state is not None else None
        quantizers = student.quantizers
        fewest = [
            min((quantizers[n].bits for n in (*u.weights, *u.activations)), default=8)
            for u in units
        ]
        half = known.half if known else in_half(fewest, course.config.precision, student.device)
        weights = tuple(weight_paths(student))
        dtypes = [torch.bfloat16 if one else torch.float32 for one in half]
        functions = [
            GraphFunction(student, unit.body, weights, dtype)
            for unit, dtype in zip(units, dtypes, strict=True)
        ]
        if known is None:
            works = [
                Work(
                    (function.structure, size.input, size.output),
                    sum(map(is_weighted, unit.body.graph.nodes)),
                    size.activations * self._batch,
                    sum(node.op.startswith("call") for node in unit.body.graph.nodes),
                    course.steps,
                )
                for function, size, unit in zip(functions, sizes, units, strict=True)
            ]
            pays = worth_compiling(works, student.device, torch.get_num_threads())
            known = Execution(pays, half)
            self._monitor.keep(f"{course.name}.execution", known.state, final=True)
        return functions, known.compiled

    def _room(self, room: CacheRoom, shape: tuple[int, ...]) -> Rows:
        return room.rows((len(self._images), *shape))

    def _stored_images(self, room: CacheRoom) -> Rows:
        rows, start = self._room(room, self._sizes[0].input), 0
        for batch in self._images.batches(self._course.config.batch_size):
            rows.write(start, batch.images.to(self._student.device))
            start += len(batch.images)
        return rows


def _weights_before_rounding(student: Student) -> dict[str, Tensor]:
    """Originals of the weights whose rounding was learnt before: learning starts from them anew."""
    return {
        path: student.originals[path]
        for name, path in weight_paths(student).items()
        if student.quantizers[name].rounding is not None and path in student.originals
    }
