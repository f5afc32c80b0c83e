"""Corrections on images within a limit of memory: smaller batches, files, the same student."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import emptyset
from emptyset.graph import layer_moments
from emptyset.graph.memory import bytes_per_image
from emptyset.graph.room import MappedFile
from emptyset.graph.student import Student, prepare
from emptyset.images.image_set import Batch
from emptyset.refiners.batch_norm_reestimation import BatchNormReestimationConfig
from emptyset.refiners.bias_correction import BiasCorrectionConfig
from emptyset.refiners.folded_students import images_in_room

GB = 2**30
METHODS: dict[str, dict[str, Any]] = {
    "bias_correction": {"statistics": "empirical"}, "batch_norm_reestimation": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def calibrated(small: Any) -> Callable[[], Student]:
    student = prepare(small.teacher_of(small.Mobile()), "w3a4")
    emptyset.refine(student, small.images(24), "calibrate")
    return student.copy


@pytest.mark.parametrize("method", METHODS)
def test_with_little_memory_activations_lie_in_files_and_nothing_else_changes(
    method: str, calibrated: Callable[[], Student], small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def watched(size: int) -> MappedFile:
        sizes.append(size)
        return MappedFile(size)

    monkeypatch.setattr(layer_moments, "MappedFile", watched)
    states = []
    for memory in (8.0, 0.5):
        student = calibrated()
        settings = METHODS[method] | {"memory": memory, "batch_size": 5}
        emptyset.refine(student, small.images(24), method, **settings)
        states.append(student.state_dict())
        assert bool(sizes) == (memory == 0.5)
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_the_first_images_come_in_batches_that_fit(
    calibrated: Callable[[], Student], small: Any
) -> None:
    student, shown = calibrated(), small.images(24)
    one = bytes_per_image(student)

    def sizes(memory: float, most: int = 17) -> list[int]:
        found = images_in_room(student, shown, most, 5, memory).batches
        assert torch.equal(torch.cat(found), shown.images[:most])
        return [len(batch) for batch in found]

    assert sizes(8.0) == [5, 5, 5, 2]
    # A forward of 3 images takes no more than half.
    assert sizes(2 * 3.5 * one / GB, most=7) == [3, 3, 1]
    assert sizes(1e-9, most=3) == [1, 1, 1]


def test_what_is_left_is_told_in_bytes(calibrated: Callable[[], Student], small: Any) -> None:
    student, shown = calibrated(), small.images(24)

    def limit(images: Any, memory: float = 3.0) -> int:
        return images_in_room(student, images, 17, 5, memory).limit

    weights = sum(p.numel() * 4 for p in student.program.parameters())
    working = 3 * weights + 5 * bytes_per_image(student)
    assert limit(shown) == 2 * GB - shown.images.numel() * 4 - working

    class Folder:
        """Reads from a disk: only the images in use are in memory."""

        def batches(self, size: int) -> Any:
            return (Batch(part, None) for part in shown.images.split(size))

    assert limit(Folder()) == 2 * GB - shown.images[:17].numel() * 4 - working
    assert limit(shown, memory=0.5) == 0


@pytest.mark.parametrize("config", [BiasCorrectionConfig, BatchNormReestimationConfig])
def test_memory_must_be_above_0(config: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"memory must be above 0\. Got 0"):
        config(memory=0.0)
