import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from stored_arrays import arrays_of

from emptyset.errors import TeacherError, UnknownNameError
from emptyset.teachers import load_teacher
from emptyset.teachers.embedded import (
    ASSETS,
    card,
    embedded_names,
    held_out_images_path,
    train_images_path,
)

ROOT = Path(__file__).parents[2]
NAMES = embedded_names()


def top1(name: str, path: Path) -> float:
    """With numpy's own arithmetic for the preprocessing."""
    teacher = load_teacher(f"embedded:{name}")
    stored = arrays_of(path)
    pixels = stored["images"].astype(np.float32).transpose(0, 3, 1, 2) / 255
    images = (pixels - teacher.input.mean[0]) / teacher.input.std[0]
    with torch.no_grad():
        predicted = teacher.module(torch.from_numpy(images)).argmax(1).numpy()
    return float((predicted == stored["labels"]).mean() * 100)


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_weights_reach_the_accuracy_on_the_card(name: str) -> None:
    told = card(name)
    # One digit more or less: other kernels may round a tie the other way.
    assert top1(name, held_out_images_path()) == pytest.approx(
        told["held_out_top1_percent"], abs=100 / 797
    )
    assert told["held_out_top1_percent"] >= 98


@pytest.mark.parametrize("name", NAMES)
def test_an_embedded_teacher_is_frozen_and_knows_its_input_and_classes(name: str) -> None:
    teacher = load_teacher(f"embedded:{name}")
    assert teacher.input.shape == (1, 16, 16)
    assert teacher.class_names == tuple("0123456789")
    assert teacher.provenance["file_sha256"] == card(name)["sha256"]
    assert not teacher.module.training
    assert not any(parameter.requires_grad for parameter in teacher.module.parameters())
    assert len(teacher.stored_batch_norms()) > 10


def test_no_held_out_digit_was_trained_on() -> None:
    train, held_out = arrays_of(train_images_path()), arrays_of(held_out_images_path())
    assert len(train["labels"]) == 1000
    assert len(held_out["labels"]) == 797
    assert not set(train["indices"]) & set(held_out["indices"])
    assert set(train["indices"]) | set(held_out["indices"]) == set(range(1797))
    # Nor is any scan there twice, under another number.
    scans = load_digits().images.astype(np.uint8).reshape(1797, -1)
    seen = {scans[i].tobytes() for i in train["indices"]}
    assert not any(scans[i].tobytes() in seen for i in held_out["indices"])


@pytest.mark.parametrize("path", [train_images_path(), held_out_images_path()])
def test_the_shipped_digits_are_the_original_scans(path: Path) -> None:
    stored, original = arrays_of(path), load_digits()
    assert stored["images"].dtype == np.uint8
    assert stored["images"].shape[1:] == (16, 16, 1)
    assert (stored["labels"] == original.target[stored["indices"]]).all()
    # A corner has no neighbours to mix with: bilinear interpolation leaves it as it is.
    corners = original.images[stored["indices"]][:, [0, 0, -1, -1], [0, -1, 0, -1]]
    shipped = stored["images"][:, [0, 0, -1, -1], [0, -1, 0, -1], 0]
    assert (shipped == np.round(corners / 16 * 255)).all()


def test_the_assets_stay_under_one_megabyte() -> None:
    assert sum(path.stat().st_size for path in ASSETS.iterdir()) < 1_000_000


def test_the_training_script_splits_as_the_shipped_files_do() -> None:
    spec = importlib.util.spec_from_file_location("train", ROOT / "tools" / "train_digits.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    parts = script.split()
    assert parts["train"].tolist() == arrays_of(train_images_path())["indices"].tolist()
    assert parts["held_out"].tolist() == arrays_of(held_out_images_path())["indices"].tolist()


@pytest.mark.slow
def test_the_training_script_gives_equal_weights_again(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "train_digits.py"), "--epochs", "2"]
    for run in ("first", "second"):
        subprocess.run([*command, "--out", str(tmp_path / run)], check=True)
    for name in NAMES:
        first, second = (
            (tmp_path / run / f"{name}.safetensors").read_bytes() for run in ("first", "second")
        )
        assert first == second


def test_an_unknown_embedded_teacher_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean 'digits-resnet'\?"):
        load_teacher("embedded:digits-resnett")


def test_embedded_teachers_refuse_options_of_other_sources() -> None:
    with pytest.raises(TeacherError, match="belongs to `file:`"):
        load_teacher("embedded:digits-resnet", model="a:b")
    with pytest.raises(TeacherError, match="take no --model-args"):
        load_teacher("embedded:digits-resnet", model_args={"classes": 3})


def test_other_weights_can_be_put_into_an_embedded_architecture(tmp_path: Path) -> None:
    shipped = load_teacher("embedded:digits-mobilenet")
    path = tmp_path / "again.pt"
    torch.save({"state_dict": shipped.module.state_dict(), "epoch": 3}, path)
    again = load_teacher("embedded:digits-mobilenet", weights=path)
    assert again.weights_hash == shipped.weights_hash
    assert again.provenance["file"] == str(path)
    assert again.provenance["container"] == ["state_dict"]


def test_without_pretrained_only_the_architecture_comes() -> None:
    bare = load_teacher("embedded:digits-resnet", pretrained=False)
    assert bare.provenance["weights"] == "none (architecture only)"
    assert bare.weights_hash != load_teacher("embedded:digits-resnet").weights_hash
    assert (
        bare.weights_hash == load_teacher("embedded:digits-resnet", pretrained=False).weights_hash
    )


def test_loading_leaves_the_global_random_state_alone() -> None:
    with torch.random.fork_rng(devices=[]):
        # A state that no earlier load can have left behind.
        torch.manual_seed(12345)
        before = torch.random.get_rng_state()
        load_teacher("embedded:digits-resnet", pretrained=False)
        assert torch.equal(before, torch.random.get_rng_state())
