"""Images that are stored while they are made are those that are made in memory."""

from pathlib import Path

import pytest
import torch
from torch import nn

from emptyset import pipeline
from emptyset.images.image_set import FILE_NAME, Batch, ImageSet
from emptyset.inversion import turns
from emptyset.inversion.parked_states import ParkedStates
from emptyset.kept_states import KeepingMonitor
from emptyset.monitor import SILENT, SilentMonitor
from emptyset.registry import synthesizers
from emptyset.synthesizers.dffg import Dffg, DffgConfig
from emptyset.synthesizers.intraq import Intraq, IntraqConfig
from emptyset.teachers.teacher import InputSpec, Teacher


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    module = module.requires_grad_(False).eval()
    return Teacher("test:net", module, InputSpec((3, 8, 12), (0.5,) * 3, (0.25,) * 3))


def settings_of(name: str) -> dict[str, object]:
    smallest = synthesizers.get(name).config.smallest()
    return {key: getattr(smallest, key) for key in vars(smallest)}


@pytest.mark.parametrize("name", synthesizers.names())
def test_stored_images_are_those_made_in_memory(
    name: str, teacher: Teacher, tmp_path: Path
) -> None:
    settings = settings_of(name)
    expected = pipeline.synthesize(teacher, name, 10, seed=3, **settings)
    card = pipeline.synthesize_to(tmp_path, teacher, name, 10, seed=3, **settings)
    stored = ImageSet.load(tmp_path)
    assert card["digest"] == expected.digest() == stored.digest()
    assert card["count"] == len(stored) == 10
    assert tuple(card["history"]) == expected.history
    assert (stored.targets is None) == (expected.targets is None)
    # The stream that a recipe reads.
    (batch,) = pipeline.images_from(tmp_path, teacher).batches(10)
    assert torch.equal(batch.images, expected.images)


class Diary(SilentMonitor):
    """Steps and pieces in the order in which they come."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def advance(self, what: str, done: int, total: int, detail: str = "") -> None:
        self.events.append("step")

    def take(self, batch: Batch) -> None:
        self.events.append(f"{len(batch.images)} images")


def test_each_harvest_is_handed_on_before_the_next_batch_begins(teacher: Teacher) -> None:
    diary = Diary()
    config = DffgConfig(steps=3, snapshots=2, burn_in=0.0, batch_size=4)
    # 13 images: 7 are optimised, in batches of 4 and 3; the last harvest gives up one.
    Dffg(config).synthesize_into(diary.take, teacher, 13, seed=0, monitor=diary)
    steps = ["step"] * 3
    assert diary.events == [*steps, "4 images", "4 images", *steps, "3 images", "2 images"]


@pytest.mark.parametrize("most_bytes", [0, 1500])
def test_earlier_batches_may_wait_in_files(
    most_bytes: int, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = Intraq(IntraqConfig(steps=4, batch_size=3))
    expected = maker.synthesize(teacher, 14, seed=1)
    parked: list[ParkedStates] = []

    class Watched(ParkedStates):
        def __init__(self, most: int) -> None:
            super().__init__(most)
            parked.append(self)

    monkeypatch.setattr(turns, "ParkedStates", Watched)
    monkeypatch.setattr(turns, "_MOST_EARLIER_BYTES", most_bytes)
    found = maker.synthesize(teacher, 14, seed=1)
    assert found.digest() == expected.digest()
    # The folder was used, and is gone.
    assert parked[0]._folder is not None
    assert not Path(parked[0]._folder.name).exists()


class KilledError(Exception):
    pass


class Killed(SilentMonitor):
    """Ends the run after some steps."""

    def __init__(self, after: int) -> None:
        self._left = after

    def advance(self, what: str, done: int, total: int, detail: str = "") -> None:
        self._left -= 1
        if self._left < 0:
            raise KilledError


def test_a_killed_run_goes_on_and_ends_with_the_same_file(teacher: Teacher, tmp_path: Path) -> None:
    settings = settings_of("dffg")
    pipeline.synthesize_to(tmp_path / "whole", teacher, "dffg", 30, seed=2, **settings)
    states, out = tmp_path / "states", tmp_path / "out"
    states.mkdir()
    for shown in (Killed(after=10), Killed(after=10)):
        kept = KeepingMonitor(shown, states, lambda _: None, every=0.0)
        with pytest.raises(KilledError):
            pipeline.synthesize_to(out, teacher, "dffg", 30, seed=2, monitor=kept, **settings)
        assert not any(out.glob("*")), "half a file stayed"
    kept = KeepingMonitor(SILENT, states, lambda _: None)
    pipeline.synthesize_to(out, teacher, "dffg", 30, seed=2, monitor=kept, **settings)
    assert (out / FILE_NAME).read_bytes() == (tmp_path / "whole" / FILE_NAME).read_bytes()
