"""Random bits: as many as asked for, each image its own, the same however a step is reached."""

import pytest
import torch

from emptyset.reconstruction.random_bits import RandomBits, bits_of, word_count

CPU = torch.device("cpu")


@pytest.mark.parametrize(("kept", "share"), [
    (0.5, 0.5), (0.25, 0.25), (0.75, 0.75), (0.7, 179 / 256), (0.0, 0.0), (1.0, 1.0),
])  # fmt: skip
def test_the_share_of_ones_is_the_one_asked_for(kept: float, share: float) -> None:
    made = RandomBits([(32, 5, 40, 50)], kept=kept, seed=7, device=CPU)
    made.prepare(0)
    bits = bits_of(made.words[0], (32, 5, 40, 50)).double()
    # Four standard errors of 320,000 draws.
    assert bits.mean().item() == pytest.approx(share, abs=4 * 0.5 / 320_000**0.5)
    per_image = bits.flatten(1).mean(1)
    assert (per_image - share).abs().max().item() <= 4 * 0.5 / 10_000**0.5


def test_bit_k_of_a_word_decides_for_image_k() -> None:
    shape = (35, 2, 3, 4)
    words = torch.arange(word_count(shape), dtype=torch.int32) * 77_777_777
    bits = bits_of(words, shape)
    planes = words.view(2, 3, 4, 2)  # two groups of images; height, width, channels
    for image, channel, row, column in [(0, 1, 2, 3), (31, 0, 0, 1), (32, 1, 1, 2), (34, 0, 2, 0)]:
        word = planes[image // 32, row, column, channel].item() & 0xFFFFFFFF
        assert bits[image, channel, row, column].item() == word >> (image % 32) & 1


def test_other_shapes_lie_as_they_are() -> None:
    words = torch.arange(12, dtype=torch.int32)
    bits = bits_of(words, (4, 12))
    assert [[w >> k & 1 for w in range(12)] for k in range(4)] == bits.tolist()


def test_a_scalar_takes_one_bit_of_one_word() -> None:
    assert word_count(()) == 1
    assert [bits_of(torch.tensor([w], dtype=torch.int32), ()).item() for w in (6, 7)] == [0, 1]
    made = RandomBits([(), (35, 2)], kept=0.5, seed=5, device=CPU)
    assert made.words.shape[1] == 1 + 2 * 2


def test_a_step_has_the_same_bits_however_it_is_reached() -> None:
    def words(*steps: int) -> torch.Tensor:
        made = RandomBits([(8, 3), (8, 70_000)], kept=0.5, seed=2, device=CPU)
        for step in steps:
            made.prepare(step)
        return made.words[steps[-1] % made.steps].clone()

    assert torch.equal(words(40), words(0, 1, 39, 40))
    assert not torch.equal(words(40), words(39))
    assert not torch.equal(words(0), words(64))


def test_images_do_not_share_their_bits() -> None:
    made = RandomBits([(4, 20_000)], kept=0.5, seed=3, device=CPU)
    made.prepare(0)
    bits = bits_of(made.words[0], (4, 20_000)).double() - 0.5
    correlation = 4 * bits @ bits.T / 20_000
    assert (correlation - torch.eye(4)).abs().max().item() < 0.03
