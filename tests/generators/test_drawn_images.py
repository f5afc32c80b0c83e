"""A generator's images as a stream are those of its set."""

import pytest
import torch
from learning_beside_source import make
from small_teachers import two_convolutions

from emptyset.errors import ImagesError
from emptyset.generators.drawn_images import DrawnImages
from emptyset.generators.generator_source import GeneratorSource
from emptyset.images.image_source import Images


@pytest.fixture(params=["qimera", "zaq"])
def source(request: pytest.FixtureRequest) -> GeneratorSource:
    made: GeneratorSource = make(request.param, two_convolutions())
    made.begin(0, 5)  # batches of 5
    return made


@pytest.mark.parametrize("size", [2, 5, 7])
def test_they_are_the_drawn_ones_in_order_whatever_the_batches(
    size: int, source: GeneratorSource
) -> None:
    images = DrawnImages(source, 13, seed=4)
    assert isinstance(images, Images)
    assert len(images) == 13
    expected = source.drawn(13, seed=4)
    # Twice: a stream can be read again.
    for _ in range(2):
        batches = list(images.batches(size))
        assert max(len(batch.images) for batch in batches) <= size
        assert torch.equal(torch.cat([batch.images for batch in batches]), expected.images)
        if expected.targets is None:
            assert all(batch.targets is None for batch in batches)
        else:
            assert torch.equal(torch.cat([batch.targets for batch in batches]), expected.targets)


def test_images_that_are_not_finite_are_refused(source: GeneratorSource) -> None:
    with torch.no_grad():
        source.generator.backbone.conv1.bias.fill_(float("nan"))
    with pytest.raises(ImagesError, match="makes images of NaN or infinity"):
        list(DrawnImages(source, 3, seed=0).batches(2))


def test_one_image_is_refused(source: GeneratorSource) -> None:
    with pytest.raises(ImagesError, match="at least 2"):
        list(DrawnImages(source, 1, seed=0).batches(2))
