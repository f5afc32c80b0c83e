"""Images come first between units, whatever axis of the network's own tensors counts them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.errors import CaptureError, UnsupportedModelError
from emptyset.graph.blocks import find_blocks
from emptyset.graph.student import Student, prepare
from emptyset.images.image_set import ImageSet
from emptyset.monitor import SILENT
from emptyset.reconstruction.chain import reconstruct
from emptyset.reconstruction.config import Course, ReconstructionConfig
from emptyset.reconstruction.image_axis import blocks_by_image, gates, output_of
from emptyset.reconstruction.units import units_of
from emptyset.refiners.calibrate import Calibrate, CalibrateConfig
from emptyset.teachers.teacher import Teacher

Make = Callable[..., Student]
COURSES: dict[str, dict[str, Any]] = {
    "layers": {"by_layer": True, "activations": False},
    "weighted": {"activations": False, "prefix_activations": False, "weighting": "fisher"},
    "activations": {"rounding": False, "activation_scale_rate": 1e-3, "inputs": "float"},
    "mixed": {"activation_scale_rate": 1e-3, "inputs": "mixed", "kept": 0.5},
}


def course_of(kind: str, steps: int = 12) -> Course:
    config = ReconstructionConfig(
        batch_size=6, rounding_learning_rate=5e-2, check_every=4, precision="float32"
    )
    return Course(name="test", config=config, steps=steps, **COURSES[kind])


class Tokens(nn.Module):
    """A sequence of patches, twice attention and layers with shortcuts; images first or second."""

    def __init__(self, *, sequence_first: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 2, 2)
        self.attention = nn.ModuleList([Attention(sequence_first) for _ in range(2)])
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 6)) for _ in range(2)
        )
        self.head = nn.Linear(6, 5)
        self.sequence_first = sequence_first

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2)
        x = x.permute(2, 0, 1) if self.sequence_first else x.permute(0, 2, 1)
        for attention, layers in zip(self.attention, self.layers, strict=True):
            x = x + attention(x)
            x = x + layers(x)
        return self.head(x.mean(0 if self.sequence_first else 1))


class Attention(nn.Module):
    """Its last layer reads all tokens of all images as rows, as `nn.MultiheadAttention`'s does."""

    def __init__(self, sequence_first: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 18), nn.Linear(6, 6)
        self.sequence_first = sequence_first

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.first(x).chunk(3, -1)
        if self.sequence_first:
            query, key, value = (part.transpose(0, 1) for part in (query, key, value))
        mixed = (query @ key.transpose(1, 2)).softmax(-1) @ value
        if not self.sequence_first:
            return self.last(mixed)
        tokens, images, channels = x.shape
        rows = mixed.transpose(0, 1).reshape(tokens * images, channels)
        return self.last(rows).view(tokens, images, channels)


class Windows(nn.Module):
    """Halves of images stand in the place of images for two layers; a shortcut goes around."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 6, 1), nn.Linear(6, 7)
        self.second, self.head = nn.Linear(7, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x)).permute(0, 2, 3, 1)
        images, height, width, channels = x.shape
        halves = x.reshape(images * 2, height // 2 * width, channels)
        halves = self.second(torch.relu(self.first(halves)))
        x = x + halves.reshape(images, height, width, channels)
        return self.head(x.mean((1, 2)))


class Halves(nn.Module):
    """No shortcut: the second convolution is a block whose input does not count images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 7, 3, padding=1)
        self.head = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        images = x.shape[0]
        x = torch.relu(self.second(x.reshape(images * 2, 6, 4, 10)))
        return self.head(x.reshape(images, 2, 7, 4, 10).mean((1, 3, 4)))


class Position(nn.Module):
    """A layer whose input is the same for all images."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.position = nn.Conv2d(3, 6, 2, 2), nn.Linear(4, 6)
        self.head = nn.Linear(6, 5)
        self.register_buffer("grid", torch.rand(1, 20, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head((x + self.position(2 * self.grid).repeat(x.shape[0], 1, 1)).mean(1))


class Flat(Halves):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "sequence first": lambda: Tokens(sequence_first=True),
    "images first": lambda: Tokens(sequence_first=False),
    "windows": Windows,
    "halves": Halves,
    "position": Position,
}
CHAINS = list(NETWORKS)
NETWORKS["flat"] = Flat


# By network, not by weights: some differ in nothing but the order of axes.
_MADE: dict[tuple[str, str, str], Student] = {}


@pytest.fixture
def student_of(teacher_of: Callable[..., Teacher], images: ImageSet) -> Make:
    def make(network: str, bits: str = "w3a4", plan: str = "edges_8bit") -> Student:
        key = (network, bits, plan)
        if key not in _MADE:
            _MADE[key] = prepare(teacher_of(NETWORKS[network]()), bits, plan=plan)
            Calibrate(CalibrateConfig()).refine(_MADE[key], images)
        return _MADE[key].copy()

    return make


@pytest.mark.parametrize("plan", ["edges_8bit", "integer"])
@pytest.mark.parametrize("network", CHAINS)
def test_every_unit_turns_rows_of_images_into_rows_of_images(
    network: str, plan: str, student_of: Make, images: ImageSet
) -> None:
    student = student_of(network, plan=plan)
    x, some = images.images, torch.tensor([7, 0, 11])
    expected = student.teacher.module(x)
    with torch.no_grad(), student.float_mode():
        for block in blocks_by_image(student):
            for unit in units_of(student, block, by_layer=True):
                read = x if unit.lead is None else unit.lead(x)
                given = unit.body(read)
                assert len(read) == len(given) == 22
                # Rows that are drawn give what they give among all.
                torch.testing.assert_close(unit.body(read[some]), given[some], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(block(x[some]), block(x)[some], atol=1e-5, rtol=1e-5)
            x = block(x)
    torch.testing.assert_close(x, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("by_layer", [False, True])
@pytest.mark.parametrize("network", CHAINS)
def test_every_weight_is_learnt_in_one_unit(network: str, by_layer: bool, student_of: Make) -> None:
    student = student_of(network)
    blocks = blocks_by_image(student)
    units = [unit for block in blocks for unit in units_of(student, block, by_layer=by_layer)]
    learnt = [name for unit in units for name in unit.weights]
    assert sorted(learnt) == sorted(f"{layer.name}.weight" for layer in student.layers())


@pytest.mark.parametrize("kind", ["layers", "weighted", "activations"])
def test_a_network_with_the_sequence_first_learns_what_its_twin_does(
    kind: str, student_of: Make, images: ImageSet
) -> None:
    """The same weights, and images first in every tensor of the twin."""
    told = []
    for network in ("sequence first", "images first"):
        student = student_of(network)
        told.append(reconstruct(student, images, course_of(kind), seed=3, monitor=SILENT))
    for one, other in zip(*told, strict=True):
        assert one.name == other.name
        assert one.start == pytest.approx(other.start, rel=1e-4)
        assert one.final == pytest.approx(other.final, rel=1e-2)
    assert any(one.final < one.start for one in told[0])


def test_layers_in_windows_are_learnt_together(student_of: Make, images: ImageSet) -> None:
    """The shortcut around the windows is no part of them; what they give is by hand here."""
    student = student_of("windows")
    before = student.copy()
    told = reconstruct(student, images, course_of("layers", 60), seed=3, monitor=SILENT)
    assert [one.name for one in told] == ["stem", "first .. second", "head"]
    assert told[1].final < told[1].start
    net: Any = student.teacher.module
    target = net.second(torch.relu(net.first(net.stem(images.images).relu().movedim(1, 3))))

    def rounded(one: Student, layer: str) -> Tensor:
        name = f"{layer}.weight"
        return one.quantizers[name](one.program.get_parameter(name)).detach()

    # The stem was learnt before, so both errors are of what it gives then.
    read = F.conv2d(images.images, rounded(student, "stem"), net.stem.bias).relu().movedim(1, 3)
    for one, error in ((before, told[1].start), (student, told[1].final)):
        found = F.linear(read, rounded(one, "first"), net.first.bias).relu()
        gap = F.linear(found, rounded(one, "second"), net.second.bias) - target
        assert gap.square().sum(3).mean().item() == pytest.approx(error, rel=1e-4)


def test_blocks_are_joined_up_to_one_that_gives_images(student_of: Make, images: ImageSet) -> None:
    student = student_of("halves")
    assert [block.name for block in find_blocks(student)] == ["first", "second", "head"]
    joined, head = blocks_by_image(student)
    assert (joined.name, joined.layers) == ("first .. second", ("first", "second"))
    assert set(joined.quantizers) | set(head.quantizers) == set(student.quantizers)
    net: Any = student.teacher.module
    rows = [
        torch.relu(net.second(torch.relu(net.first(image)).reshape(2, 6, 4, 10)))
        for image in images.images
    ]
    expected = torch.stack(rows)
    with torch.no_grad(), student.float_mode():
        torch.testing.assert_close(joined(images.images), expected, atol=1e-6, rtol=1e-5)
    before = student.copy()
    told = reconstruct(student, images, course_of("weighted"), seed=3, monitor=SILENT)
    for one, error in ((before, told[0].start), (student, told[0].final)):
        for quantizer in one.quantizers.values():
            quantizer.enabled = quantizer.axis is not None
        with torch.no_grad():
            gap = blocks_by_image(one)[0](images.images) - expected
        assert gap.square().sum(2).mean().item() == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize("kind", COURSES)
@pytest.mark.parametrize("network", CHAINS)
def test_every_course_takes_them(
    kind: str, network: str, student_of: Make, images: ImageSet
) -> None:
    student = student_of(network, plan="integer")
    told = reconstruct(student, images, course_of(kind, 3), seed=3, monitor=SILENT)
    assert all(one.final <= one.start for one in told)
    with student.float_mode():
        expected = student.teacher.module(images.images)
        torch.testing.assert_close(student(images.images), expected, atol=1e-5, rtol=1e-5)


def test_an_output_that_counts_no_images_is_refused_with_the_way_out(
    student_of: Make, images: ImageSet
) -> None:
    with pytest.raises(CaptureError, match=r"block 'head': .* \(10,\).* Wrap the network"):
        reconstruct(student_of("flat"), images, course_of("mixed"), seed=3, monitor=SILENT)


def test_a_network_without_layers_is_refused(teacher_of: Callable[..., Teacher]) -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    with pytest.raises(UnsupportedModelError, match="at least one convolution or linear"):
        blocks_by_image(prepare(teacher_of(Mean()), "w4a4"))


@pytest.mark.parametrize(("layer", "inside"), [("first", 0), ("head", 2)])
def test_gates_are_what_no_path_can_leave_out(layer: str, inside: int, student_of: Make) -> None:
    """By trying: without a gate nothing leads from the first node to the last."""
    student = student_of("windows")
    (module,) = (b.module for b in find_blocks(student) if layer in b.layers)
    first, last = next(iter(module.graph.nodes)), output_of(module)

    def leads(without: Any) -> bool:
        seen, waiting = {without}, [first]
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                waiting.extend(u for u in node.users if isinstance(u.meta.get("val"), Tensor)
                               or u.op == "call_module")  # fmt: skip
        return last in seen - {without}

    between = [n for n in module.graph.nodes if n not in (first, last)]
    expected = [first, *(node for node in between if not leads(node)), last]
    assert gates(first, last) == expected
    assert len(expected) == 2 + inside
