"""What every registered selector promises."""

from typing import Any

import pytest
import torch

from emptyset.images.image_set import ImageSet
from emptyset.registry import selectors
from emptyset.teachers.teacher import Teacher


@pytest.mark.parametrize("name", selectors.names())
class TestSelectorContract:
    def test_gives_a_subset_in_the_old_order_with_everything_that_belongs_to_it(
        self, name: str, tiny_teacher: Teacher
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        images = ImageSet(
            torch.randn(13, *tiny_teacher.input.shape, generator=generator),
            torch.arange(13) % 5,
            {"number": torch.arange(13.0)},
            ({"stage": "images", "method": "test"},),
        )
        entry = selectors.get(name)
        selector: Any = entry.make(entry.config.smallest())
        chosen: ImageSet = selector.select(images, tiny_teacher)
        positions = chosen.scores["number"].long()
        assert 0 < len(chosen) < 13
        assert bool((positions[1:] > positions[:-1]).all())
        assert torch.equal(chosen.images, images.images[positions])
        assert chosen.targets is not None
        assert torch.equal(chosen.targets, positions % 5)
        assert set(chosen.scores) > {"number"}
        assert chosen.history[0] == images.history[0]
        assert chosen.history[1]["method"] == name

    def test_leaves_the_teacher_without_hooks_or_gradients(
        self, name: str, tiny_teacher: Teacher
    ) -> None:
        images = ImageSet(torch.ones(6, *tiny_teacher.input.shape))
        entry = selectors.get(name)
        selector: Any = entry.make(entry.config.smallest())
        selector.select(images, tiny_teacher)
        for part in tiny_teacher.module.modules():
            assert not part._forward_hooks
            assert not part._forward_pre_hooks
        assert all(p.grad is None for p in tiny_teacher.module.parameters())
