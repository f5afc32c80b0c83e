"""Blocks that stop early, and images, students and teachers that no course can learn from."""

from collections.abc import Callable

import pytest
import torch
from short_courses import COURSES, course_of, learn

from emptyset.errors import CollapseError, ImagesError, NotCalibratedError
from emptyset.graph.student import Student, prepare
from emptyset.images.image_set import ImageSet
from emptyset.images.image_source import StoredImages
from emptyset.reconstruction.unit_tensors import UnitTensors
from emptyset.teachers.teacher import Teacher

Make = Callable[..., Student]


class TestPatience:
    def test_a_block_stops_when_its_error_no_longer_falls_and_the_best_is_kept(
        self, teacher: Teacher, student_of: Make, images: ImageSet, disk
    ) -> None:
        heard, full = disk(), disk()
        long = {"steps": 80, "warm_up": 0.0, "check_every": 2}
        told = learn(student_of(teacher), images, course_of(patience=3, **long), heard)
        assert all(one.final <= one.start for one in told)
        learn(student_of(teacher), images, course_of(**long), full)
        # Every step of every block, and every block once more when it is done.
        assert len(full.advanced) == 5 * 80 + 5
        assert len(heard.advanced) < 5 * 60

    def test_a_kill_does_not_make_it_forget_the_best(
        self, teacher: Teacher, student_of: Make, images: ImageSet, disk, killed
    ) -> None:
        course = course_of(steps=20, patience=2, warm_up=0.0, check_every=2)
        fresh, whole = student_of(teacher), disk()
        student = fresh.copy()
        learn(student, images, course, whole)
        for limit in (13, whole.kept // 2):
            resumed, one = fresh.copy(), disk(limit)
            with pytest.raises(killed):
                learn(resumed, images, course, one)
            resumed, one.limit = fresh.copy(), None
            learn(resumed, images, course, one)
            for name, value in student.state_dict().items():
                assert torch.equal(value, resumed.state_dict()[name]), name


class TestDoubtfulInput:
    def test_fewer_images_than_a_batch_are_all_taken(
        self, teacher: Teacher, student_of: Make, images: ImageSet, disk
    ) -> None:
        few, heard = images.subset(torch.arange(3)), disk()
        told = learn(student_of(teacher), few, course_of(), heard)
        assert all(one.final <= one.start for one in told)
        assert "3 images are fewer than batch_size (6)" in heard.notes[0]

    def test_no_images_are_refused(self, teacher: Teacher, student_of: Make) -> None:
        class Nothing:
            def __len__(self) -> int:
                return 0

            def batches(self, size: int) -> list:
                return []

        with pytest.raises(ImagesError, match="no images"):
            learn(student_of(teacher), Nothing(), course_of())

    def test_a_source_is_refused_with_what_to_do(
        self, teacher: Teacher, student_of: Make, images: ImageSet
    ) -> None:
        with pytest.raises(ImagesError, match=r"Got StoredImages. Draw a set"):
            learn(student_of(teacher), StoredImages(images, seed=0), course_of())

    def test_a_student_without_ranges_is_refused(self, teacher: Teacher, images: ImageSet) -> None:
        with pytest.raises(NotCalibratedError, match="calibrate"):
            learn(prepare(teacher, "w3a3", plan="edges_8bit"), images, course_of())

    @pytest.mark.parametrize("kind", COURSES)
    def test_dead_channels_and_a_constant_block_learn_without_harm(
        self, kind: str, teacher: Teacher, student_of: Make, images: ImageSet
    ) -> None:
        with torch.no_grad():
            teacher.module.units[0].conv1.weight[2] = 0.0  # a channel of zero range
            teacher.module.units[1].norm2.weight.zero_()
            teacher.module.units[1].norm2.bias.fill_(-99.0)  # ReLU gives 0, whatever comes
        student = student_of(teacher)
        told = learn(student, images, course_of(kind))
        assert all(one.final <= one.start for one in told)
        assert all(torch.isfinite(value).all() for value in student.state_dict().values())
        with torch.no_grad():
            assert torch.isfinite(student(images.images)).all()

    @pytest.mark.parametrize("patience", [0, 5])
    def test_nan_stops_names_the_block_and_puts_it_back(
        self, patience: int, teacher: Teacher, student_of: Make, images: ImageSet, monkeypatch
    ) -> None:
        student = student_of(teacher)
        before, made = student.state_dict(), UnitTensors.prepare

        def poisoned(self: UnitTensors, number: int) -> None:
            made(self, number)
            if number == 10 and "units.1.conv1.weight" in self.recipe.function.quantizers:
                self.named["row"].fill_(float("nan"))

        monkeypatch.setattr(UnitTensors, "prepare", poisoned)
        course = course_of(patience=patience, warm_up=0.0)
        with pytest.raises(CollapseError, match=r"block 'units.1' diverged \(NaN or infinity\)"):
            learn(student, images, course)
        after = student.state_dict()
        assert all(torch.isfinite(value).all() for value in after.values())
        # The block before it keeps what it learnt; this one is as it was, or as it was at its best.
        assert not torch.equal(after["units.0.conv1.weight"], before["units.0.conv1.weight"])
        changed = not torch.equal(after["units.1.conv1.weight"], before["units.1.conv1.weight"])
        assert changed == (patience > 0)
        assert torch.equal(after["units.2.conv1.weight"], before["units.2.conv1.weight"])

    def test_a_teacher_with_nan_is_refused_before_anything_is_learnt(
        self, teacher: Teacher, student_of: Make, images: ImageSet
    ) -> None:
        student = student_of(teacher)
        with torch.no_grad():
            student.program.get_parameter("units.0.conv2.bias")[1] = float("nan")
        with pytest.raises(CollapseError, match=r"block 'units.0' should give holds NaN"):
            learn(student, images, course_of())
