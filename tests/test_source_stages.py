"""A run with a source: what diverges keeps its last good student, what is killed goes on."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stored_arrays import arrays_of

import emptyset
from emptyset.errors import ImagesError, RecipeError, RunFolderError
from emptyset.images.image_set import ImageSet
from emptyset.job.stages import Stages
from emptyset.monitor import SilentMonitor
from emptyset.recipe import Recipe
from emptyset.refiners.finite_losses import DivergedError
from emptyset.run_folder import GENERATOR, LAST_GOOD, LOG, STUDENT, RunFolder
from emptyset.teachers.embedded import train_images_path

pytestmark = pytest.mark.usefixtures("judged_on_few")

DIGITS = "embedded:digits-resnet"
PLAN = {"name": "every_layer", "bits": "w4a4", "batch_norm": "frozen"}
# Few and narrow; the source's rate stays, so that a shorter training begins alike.
SMALL: dict[str, Any] = {"count": 5, "widths": [5, 4], "latent": 6, "milestones": [1.0]}
STEPS, BATCH, LOOK = 12, 4, 4
SHORT = {"steps": STEPS, "batch_size": BATCH, "epoch": LOOK, "warm_up": 0.25, "milestones": [1.0]}
HELD_OUT = 6


def recipe(method: str, **changes: Any) -> Recipe:
    """A run with this source and the preset of its name; settings of the student on top."""
    beside = {"beside": changes.pop("beside")} if "beside" in changes else {}
    small = {k: v for k, v in SMALL.items() if (method, k) != ("qimera", "latent")}
    source = {"method": method, **small, **beside, **changes.pop("source", {})}
    distill = {"method": "distill", "preset": method, "held_out": HELD_OUT, **SHORT, **changes}
    return Recipe.parse(
        {
            "teacher": {"name": DIGITS}, "device": "cpu", "plan": PLAN, "source": source,
            "refine": [distill],
        }
    )  # fmt: skip


# Divergence ----------------------------------------------------------------------------------

WILD = 1e8


@pytest.fixture(scope="module")
def diverged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DivergedError]:
    """The folder of a run whose student diverges after its first look, and what was said."""
    out = tmp_path_factory.mktemp("diverged") / "run"
    with pytest.raises(DivergedError) as error:
        emptyset.run(recipe("gdfq", learning_rate=WILD), out)
    return out, error.value


def test_what_diverged_is_named_and_where_the_last_good_student_is(
    diverged: tuple[Path, DivergedError],
) -> None:
    out, error = diverged
    said = str(error)
    assert "training diverged: the loss term '" in said
    assert f"as it was after batch {LOOK}" in said
    assert said.endswith(f"It is in {out / LAST_GOOD}.")
    assert (error.exit_code, error.kept) == (4, True)
    assert said in (out / LOG).read_text(encoding="utf-8")
    left = {path.name for path in out.iterdir()}
    assert LAST_GOOD in left
    assert not left & {STUDENT, GENERATOR, "model.onnx", "report.html", "stages.json"}


def test_the_last_good_student_is_the_one_of_the_last_look(
    diverged: tuple[Path, DivergedError],
) -> None:
    teacher = emptyset.load(DIGITS)
    # The same training, ended by its own schedule where the other one was last well.
    expected = emptyset.prepare(teacher, "w4a4", plan="every_layer", batch_norm="frozen")
    source = emptyset.source(teacher, "gdfq", **{k: v for k, v in SMALL.items() if k != "count"})
    settings = SHORT | {"steps": LOOK, "warm_up": 0.75, "learning_rate": WILD, "held_out": 0}
    emptyset.refine(expected, source, "distill", preset="gdfq", **settings)

    found = emptyset.prepare(teacher, "w4a4", plan="every_layer", batch_norm="frozen")
    found.load_state(diverged[0] / LAST_GOOD)
    assert found.originals.keys() == expected.originals.keys()
    assert found.originals
    own = expected.state_dict()
    for key, value in found.state_dict().items():
        assert bool(torch.isfinite(value).all()), key
        assert torch.equal(value, own[key]), key


def test_the_folder_stays_that_runs_and_takes_another_only_when_told(
    diverged: tuple[Path, DivergedError], tmp_path: Path
) -> None:
    out, error = diverged
    before = (out / LAST_GOOD).read_bytes()
    with pytest.raises(DivergedError) as again:
        emptyset.run(recipe("gdfq", learning_rate=WILD), out)
    assert str(again.value) == str(error)
    assert (out / LAST_GOOD).read_bytes() == before
    with pytest.raises(RunFolderError, match=r"learning_rate: 100000000\.0 there"):
        emptyset.run(recipe("gdfq"), out)
    assert (out / LAST_GOOD).read_bytes() == before
    taken = tmp_path / "taken"
    shutil.copytree(out, taken)
    emptyset.run(recipe("gdfq"), taken, overwrite=True)
    # Its training did not diverge: the student there was another recipe's.
    assert (taken / STUDENT).is_file()
    assert not (taken / LAST_GOOD).exists()


@pytest.mark.parametrize(
    ("changes", "term"),
    [
        ({"source": {"learning_rate": 1e30}}, "gdfq: "),
        # All is lost before the first look.
        ({"learning_rate": WILD, "epoch": STEPS}, "distillation"),
    ],
)
def test_where_the_student_was_never_good_nothing_is_kept(
    changes: dict[str, Any], term: str, tmp_path: Path
) -> None:
    with pytest.raises(DivergedError) as error:
        emptyset.run(recipe("gdfq", **changes), tmp_path / "run")
    assert f"the loss term '{term}" in str(error.value)
    assert "as it was before" in str(error.value)
    assert LAST_GOOD not in str(error.value)
    assert not error.value.kept
    # No progress: nothing is left behind.
    assert not (tmp_path / "run").exists()


# Killed --------------------------------------------------------------------------------------


class KilledError(Exception):
    pass


class Killing(SilentMonitor):
    """Ends the process, as it were, in the middle of a batch of `distill`."""

    def __init__(self, after: int | None = None) -> None:
        self._after, self.seen = after, list[int]()

    def advance(self, what: str, done: int, total: int, detail: str = "") -> None:
        if not what.endswith("distill"):
            return
        assert total == STEPS
        self.seen.append(done)
        if done == self._after:
            raise KilledError


class EnoughError(Exception):
    """The images are drawn; what follows does not depend on the source."""


@pytest.fixture
def run_to_the_images(monkeypatch: pytest.MonkeyPatch) -> Any:
    def enough(_: Stages) -> None:
        raise EnoughError

    def run(chosen: Recipe, out: Path, monitor: Any = None) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Stages, "guard", enough)
            with pytest.raises(EnoughError):
                emptyset.run(chosen, out, monitor=monitor or SilentMonitor(), keep_every=0.0)

    return run


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> str:
    data = arrays_of(train_images_path())
    path = tmp_path_factory.mktemp("real") / "real.npz"
    np.savez(path, images=data["images"][:9], labels=data["labels"][:9])
    return str(path)


@pytest.fixture(params=["zaq", "gdfq beside real images"])
def chosen(request: pytest.FixtureRequest, real: str) -> Recipe:
    """A source that learns from the student, and one whose student learns from real images too."""
    method, _, beside = request.param.partition(" beside ")
    more: dict[str, Any] = {"learning_rate": 1e-3}
    if beside:
        more["beside"] = {"images": real, "choose": "all", "share": 0.3}
    return recipe(method, **more)


def outcome(out: Path) -> tuple[dict[str, dict[str, torch.Tensor]], Any]:
    """Tensors of student, generator and images; what training had to tell."""
    names = (STUDENT, GENERATOR, "images/images.safetensors")
    record = RunFolder.open(out)[0].record("student")
    assert record is not None
    return {name: load_file(out / name) for name in names}, record.result["records"]


def assert_same(found: Path, expected: Path) -> None:
    (files, records), (others, told) = outcome(found), outcome(expected)
    for name, tensors in files.items():
        assert tensors.keys() == others[name].keys()
        for key, value in tensors.items():
            assert torch.equal(value, others[name][key]), f"{name}: {key}"
    assert records == told


def test_killed_it_goes_on_and_ends_the_same(
    chosen: Recipe, run_to_the_images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_to_the_images(chosen, whole)

    stopped = Killing(after=7)
    with pytest.raises(KilledError):
        emptyset.run(chosen, killed, monitor=stopped, keep_every=0.0)
    assert stopped.seen == list(range(1, 8))

    # When training was over, before the stage was.
    def stop(*_: Any) -> None:
        raise KilledError

    last = Killing()
    with monkeypatch.context() as patch:
        patch.setattr("emptyset.job.stages.write_generator", stop)
        with pytest.raises(KilledError):
            emptyset.run(chosen, killed, monitor=last, keep_every=0.0)
    # A batch is told of before its state is kept: that one was lost.
    assert last.seen == list(range(7, STEPS + 1))
    assert not (killed / STUDENT).exists()
    assert not (killed / GENERATOR).exists()

    # What is restored is not trained again, and the generator is the trained one.
    with monkeypatch.context() as patch:
        patch.setattr("emptyset.pipeline.refine", stop)
        run_to_the_images(chosen, killed)
    assert_same(killed, whole)
    records = outcome(killed)[1]
    assert [epoch["update"] for epoch in records[0]["epochs"]][-1] == STEPS
    told = [record["real_images_beside"] for record in records if "real_images_beside" in record]
    assert told == ([9] if chosen.source.beside else [])


# What a source cannot be, told first ------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "changes", "error", "said"),
    [
        ("zaq", {"preset": "gdfq"}, ImagesError, "cross_entropy"),
        ("gdfq", {"warm_up": 0.999}, RecipeError, "would learn nothing"),
        (
            "qimera",
            {"preset": "gdfq", "source": {"superposed_classes": 11, "replacement": False}},
            RecipeError,
            "11",
        ),
        ("gdfq", {"beside": {"images": "real", "choose": "all"}}, ImagesError, "no labels"),
        ("gdfq", {"beside": {"images": "real", "choose": "all", "below": 0.5}}, RecipeError, "all"),
        ("adasg", {"beside": {"images": "real"}}, RecipeError, "learns from the same batches"),
    ],
)
def test_it_is_refused_before_images_are_made_and_reconstruction_runs(
    method: str, changes: dict[str, Any], error: type[Exception], said: str, tmp_path: Path
) -> None:
    made = ImageSet(torch.rand(6, 1, 16, 16))
    if "beside" in changes:
        changes = {**changes, "beside": {**changes["beside"], "images": str(tmp_path / "real")}}
        made.save(tmp_path / "real")
    asked = recipe(method, **changes).model_dump(exclude_none=True)
    asked["synthesize"] = {"method": "zeroq", "count": 4, "steps": 2}
    asked["refine"] = [{"method": "genie", "steps": 2, "batch_size": 2}, *asked["refine"]]
    with pytest.raises(error, match=said):
        emptyset.run(Recipe.parse(asked), tmp_path / "run")
    # Images would lie here, made or half made.
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_real_images_that_went_are_told_of_though_the_student_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = arrays_of(train_images_path())
    real = tmp_path / "real.npz"
    np.savez(real, images=data["images"][:9], labels=data["labels"][:9])
    chosen = recipe("gdfq", beside={"images": str(real), "choose": "all", "share": 0.3})
    out = tmp_path / "run"

    def stop(_stages: Stages) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Stages, "guard", stop)
        with pytest.raises(KeyboardInterrupt):
            emptyset.run(chosen, out)
    assert (out / STUDENT).is_file()
    real.unlink()
    with pytest.raises(ImagesError, match=r"source\.beside\.images: there is no file or folder"):
        emptyset.run(chosen, out)
    assert (out / STUDENT).is_file()
