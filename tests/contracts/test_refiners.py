"""What every refiner keeps: the teacher, float mode, no hooks, one result for one seed."""

import copy

import pytest
import torch

import emptyset
from emptyset.graph.blocks import find_blocks
from emptyset.graph.student import Student, prepare
from emptyset.images.image_set import ImageSet
from emptyset.reconstruction.config import ReconstructionConfig
from emptyset.registry import refiners
from emptyset.teachers.teacher import Teacher

NAMES = refiners.names()
RECONSTRUCTING = [n for n in NAMES if issubclass(refiners.get(n).config, ReconstructionConfig)]


def images_for(teacher: Teacher, count: int = 7) -> ImageSet:
    generator = torch.Generator().manual_seed(5)
    return ImageSet(torch.randn(count, *teacher.input.shape, generator=generator))


def refined(name: str, teacher: Teacher, bits: str = "w4a4", plan: str = "integer") -> Student:
    """A calibrated student that this refiner has worked on."""
    student = prepare(teacher, bits, plan=plan)
    for step in dict.fromkeys(("calibrate", name)):
        entry = refiners.get(step)
        config = getattr(entry.config, "smallest", entry.config)()
        entry.make(config).refine(student, images_for(teacher), seed=3)
    return student


@pytest.mark.parametrize("name", NAMES)
class TestRefinerContract:
    def test_leaves_the_teacher_as_it_was(self, name: str, tiny_teacher: Teacher) -> None:
        before = copy.deepcopy(tiny_teacher.module.state_dict())
        refined(name, tiny_teacher)
        for key, value in tiny_teacher.module.state_dict().items():
            assert torch.equal(value, before[key]), key
        assert all(p.grad is None for p in tiny_teacher.module.parameters())

    @pytest.mark.parametrize("plan", ["integer", "every_layer", "edges_8bit"])
    def test_float_mode_stays_the_teacher(
        self, name: str, plan: str, tiny_teacher: Teacher
    ) -> None:
        student, images = refined(name, tiny_teacher, plan=plan), images_for(tiny_teacher)
        with student.float_mode():
            expected = tiny_teacher.module(images.images)
            torch.testing.assert_close(student(images.images), expected, atol=1e-5, rtol=0)

    def test_every_quantizer_is_on_and_has_a_range(self, name: str, tiny_teacher: Teacher) -> None:
        student = refined(name, tiny_teacher)
        assert all(q.enabled and bool(q.calibrated) for q in student.quantizers.values())

    def test_no_hook_stays_behind(self, name: str, tiny_teacher: Teacher) -> None:
        student = refined(name, tiny_teacher)
        for module in [*student.program.modules(), *tiny_teacher.module.modules()]:
            assert not module._forward_hooks
            assert not module._forward_pre_hooks

    def test_the_same_seed_gives_the_same_student(self, name: str, tiny_teacher: Teacher) -> None:
        before = torch.random.get_rng_state()
        states = [refined(name, tiny_teacher).state_dict() for _ in range(2)]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_registration_says_what_it_does(self, name: str) -> None:
        entry = refiners.get(name)
        assert entry.sentence.endswith(".")
        assert entry.source


@pytest.mark.parametrize("plan", ["integer", "every_layer", "edges_8bit"])
@pytest.mark.parametrize("name", RECONSTRUCTING)
class TestReconstructionContract:
    def learnt(self, name: str, plan: str, teacher: Teacher) -> tuple[Student, Student, ImageSet]:
        """As calibrated, as learnt, and on which images."""
        images = images_for(teacher, 11)
        start = emptyset.prepare(teacher, "w3a4", plan=plan)
        emptyset.refine(start, images, "calibrate")
        student = start.copy()
        settings = {"steps": 60, "batch_size": 4, "rounding_learning_rate": 5e-2}
        if hasattr(refiners.get(name).config, "activation_steps"):
            settings["activation_steps"] = 20
        emptyset.refine(student, images, name, **settings)
        return start, student, images

    def test_no_block_ends_worse_than_it_began(
        self, name: str, plan: str, tiny_teacher: Teacher
    ) -> None:
        _, student, _ = self.learnt(name, plan, tiny_teacher)
        assert student.records
        for record in student.records:
            assert record["refiner"] == name
            # The blocks of this network are its layers.
            assert [one["block"] for one in record["blocks"]] == ["conv1", "conv2", "linear"]
            for block in record["blocks"]:
                assert 0 <= block["final"] <= block["start"]
                assert block["kept"] or block["final"] == block["start"]
        assert any(b["final"] < b["start"] for b in student.records[0]["blocks"])

    def test_the_first_blocks_errors_are_those_that_are_told(
        self, name: str, plan: str, tiny_teacher: Teacher
    ) -> None:
        """Measured by hand; what a later block reads depends on what was learnt before."""
        start, student, images = self.learnt(name, plan, tiny_teacher)
        net = tiny_teacher.module
        expected = net.bn1(net.conv1(images.images)).relu()
        weights_alone = name in ("adaround", "brecq")
        told = student.records[0]["blocks"][0]
        for one, error in ((start, told["start"]), (student, told["final"])):
            for quantizer in one.quantizers.values():
                quantizer.enabled = quantizer.axis is not None or not weights_alone
            with torch.no_grad():
                gap = find_blocks(one)[0](images.images) - expected
            assert gap.square().sum(1).mean().item() == pytest.approx(error, rel=1e-4)
