"""What every registered synthesizer promises."""

import copy
from typing import Any

import pytest
import torch

from emptyset.errors import ImagesError
from emptyset.images.image_set import ImageSet
from emptyset.registry import synthesizers
from emptyset.teachers.teacher import Teacher


def make(name: str, teacher: Teacher, count: int = 7, seed: int = 0) -> ImageSet:
    entry = synthesizers.get(name)
    made: Any = entry.make(entry.config.smallest())
    images: ImageSet = made.synthesize(teacher, count, seed=seed)
    return images


@pytest.mark.parametrize("name", synthesizers.names())
class TestSynthesizerContract:
    @pytest.mark.parametrize("count", [2, 4, 7, 11])
    def test_gives_exactly_the_count_asked_for(
        self, name: str, tiny_teacher: Teacher, count: int
    ) -> None:
        images = make(name, tiny_teacher, count)
        assert images.images.shape == (count, *tiny_teacher.input.shape)
        assert len({image.numpy().tobytes() for image in images.images}) == count

    def test_the_same_seed_gives_the_same_images_and_another_does_not(
        self, name: str, tiny_teacher: Teacher
    ) -> None:
        first, again, other = (make(name, tiny_teacher, seed=s) for s in (3, 3, 4))
        assert torch.equal(first.images, again.images)
        assert not torch.equal(first.images, other.images)

    def test_leaves_the_teacher_as_it_was(self, name: str, tiny_teacher: Teacher) -> None:
        module = tiny_teacher.module
        before = copy.deepcopy(module.state_dict())
        strides = {key: value.stride() for key, value in module.state_dict().items()}
        make(name, tiny_teacher)
        for key, value in module.state_dict().items():
            assert torch.equal(value, before[key]), key
            assert value.stride() == strides[key], key
        assert all(p.grad is None for p in module.parameters())
        assert not any(p.requires_grad for p in module.parameters())
        for part in module.modules():
            assert not part.training
            assert not part._forward_hooks
            assert not part._forward_pre_hooks
            assert not part._backward_hooks

    def test_leaves_the_global_random_state_alone(self, name: str, tiny_teacher: Teacher) -> None:
        before = torch.get_rng_state()
        make(name, tiny_teacher)
        assert torch.equal(torch.get_rng_state(), before)

    def test_says_in_the_history_what_was_done(self, name: str, tiny_teacher: Teacher) -> None:
        (entry,) = make(name, tiny_teacher, count=5, seed=9).history
        assert entry["stage"] == "synthesize"
        assert entry["method"] == name
        assert entry["seed"] == 9
        assert entry["count"] == 5
        assert entry["teacher"] == tiny_teacher.weights_hash
        assert entry["dtype"] in ("float32", "bfloat16")
        assert isinstance(entry["compiled"], bool)
        assert isinstance(entry["settings"], dict)

    @pytest.mark.parametrize("count", [0, 1])
    def test_refuses_a_count_that_makes_no_set(
        self, name: str, tiny_teacher: Teacher, count: int
    ) -> None:
        with pytest.raises(ImagesError, match="at least 2"):
            make(name, tiny_teacher, count)
