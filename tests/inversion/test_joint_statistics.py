"""What batches know of one another when they are matched as one set."""

import pytest
import torch

from emptyset.inversion.joint_statistics import SetMoments, batch_moments, joined_with
from emptyset.inversion.parked_states import ParkedStates
from emptyset.losses.layer_statistics import LayerStatistics

CPU = torch.device("cpu")


def layer(images: int, channels: int, seed: int) -> LayerStatistics:
    generator = torch.Generator().manual_seed(seed)
    shift, square = torch.randn(2, images, channels, generator=generator)
    return LayerStatistics(shift, square, 6, torch.ones(channels))


def test_every_layer_gets_the_mean_over_the_other_batches_of_its_own_channels() -> None:
    batches = [[layer(2, 3, seed=b), layer(2, 1, seed=10 + b)] for b in range(4)]
    moments = SetMoments({"teacher": 4}, 2, CPU)
    for number, layers in enumerate(batches):
        moments.put(number, {"teacher": batch_moments(layers)})
    first, second = joined_with(batches[1], moments.elsewhere(1), "teacher")
    for found, position in ((first, 0), (second, 1)):
        others = [batches[b][position] for b in (0, 2, 3)]
        assert found.elsewhere is not None
        assert found.elsewhere.images.item() == 6
        expected = torch.cat([other.shift for other in others]).mean(0)
        torch.testing.assert_close(found.elsewhere.shift, expected)
        expected = torch.cat([other.square for other in others]).mean(0)
        torch.testing.assert_close(found.elsewhere.square, expected)
        assert found.shift is batches[1][position].shift


def test_before_the_others_had_a_turn_there_is_nothing_elsewhere() -> None:
    moments = SetMoments({"teacher": 4}, 2, CPU)
    moments.put(0, {"teacher": torch.ones(2, 4)})
    elsewhere = moments.elsewhere(0)
    assert elsewhere["elsewhere.teacher.images"].item() == 0
    assert elsewhere["elsewhere.teacher"].tolist() == [[0.0] * 4] * 2


def test_a_teacher_counts_only_the_batches_that_it_was_shown() -> None:
    moments = SetMoments({"teacher": 2, "other.0": 3}, 5, CPU)
    moments.put(0, {"teacher": torch.ones(2, 2)})
    moments.put(1, {"teacher": torch.ones(2, 2), "other.0": torch.full((2, 3), 7.0)})
    elsewhere = moments.elsewhere(2)
    assert elsewhere["elsewhere.teacher.images"].item() == 10
    assert elsewhere["elsewhere.other.0.images"].item() == 5
    assert elsewhere["elsewhere.other.0"].unique().tolist() == [7.0]


def test_what_a_batch_leaves_has_no_gradient() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert not batch_moments([LayerStatistics(x * 2, x * 3, 1, torch.ones(2))]).requires_grad


@pytest.mark.parametrize("limit", [0, 100, 1 << 20])
def test_states_come_back_to_the_last_bit_from_memory_and_from_files(limit: int) -> None:
    generator = torch.Generator().manual_seed(0)
    states = [
        {"x": torch.randn(3, 4, generator=generator), "done": torch.tensor(b)} for b in range(3)
    ]
    with ParkedStates(limit) as parked:
        for batch, state in enumerate(states):
            parked.put(batch, state)
        read = parked.get(1)
        # What was read stays what it was when the state is put anew.
        parked.put(1, {"x": torch.zeros(3, 4), "done": torch.tensor(9)})
        for found, state in ((parked.get(0), states[0]), (read, states[1])):
            assert found.keys() == state.keys()
            assert all(torch.equal(found[name], state[name]) for name in state)
        assert parked.get(1)["done"].item() == 9


def test_a_state_that_has_grown_too_large_replaces_the_one_in_memory() -> None:
    with ParkedStates(100) as parked:
        parked.put(0, {"x": torch.zeros(3)})
        parked.put(0, {"x": torch.ones(300)})
        assert parked.get(0)["x"].sum().item() == 300
        parked.put(0, {"x": torch.zeros(3)})
        assert parked.get(0)["x"].sum().item() == 0
