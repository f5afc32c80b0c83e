"""Generators read from files, whole and damaged."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_teachers import two_convolutions

from emptyset import generation
from emptyset.errors import ImagesError
from emptyset.generators.generator_file import CARD, read_generator, save_generator
from emptyset.teachers.teacher import Teacher

SMALL: dict[str, Any] = {"mapped": 6, "widths": (5, 4)}


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return two_convolutions()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, teacher: Teacher) -> Path:
    path = tmp_path_factory.mktemp("generator") / "generator.safetensors"
    save_generator(generation.source(teacher, "qimera", seed=3, **SMALL), path)
    return path


def rewritten(
    whole: Path,
    at: Path,
    *,
    card: Callable[[dict[str, Any]], Any] = lambda card: card,
    tensors: Callable[[dict[str, Any]], dict[str, Any]] = lambda tensors: tensors,
) -> Path:
    """The same file with another card or other tensors."""
    kept, network = read_generator(whole)
    save_file(tensors(network), at, metadata={CARD: json.dumps(card(kept))})
    return at


def refusal(path: Path, teacher: Teacher) -> str:
    with pytest.raises(ImagesError) as error:
        generation.generator_from(path, teacher)
    return str(error.value)


def test_a_whole_file_gives_the_same_images(whole: Path, teacher: Teacher, tmp_path: Path) -> None:
    before = generation.source(teacher, "qimera", seed=3, **SMALL).drawn(7, seed=1)
    for path in (whole, rewritten(whole, tmp_path / "g.safetensors")):
        found = generation.generator_from(path, teacher).drawn(7, seed=1)
        assert torch.equal(found.images, before.images)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file_is_refused(
    share: float, whole: Path, teacher: Teacher, tmp_path: Path
) -> None:
    data = whole.read_bytes()
    path = tmp_path / "generator.safetensors"
    path.write_bytes(data[: int(share * len(data))])
    assert f"{path}: not a readable generator" in refusal(path, teacher)


def test_what_is_no_generator_is_refused(teacher: Teacher, tmp_path: Path) -> None:
    plain = tmp_path / "student.safetensors"
    save_file({"weight": torch.zeros(3)}, plain)
    assert f"{plain}: is no generator. Give the generator.safetensors" in refusal(plain, teacher)
    text = tmp_path / "notes.txt"
    text.write_text("These are only some notes about a generator.\n", encoding="utf-8")
    for path in (text, tmp_path / "missing"):
        assert f"{path}: not a readable generator" in refusal(path, teacher)
    assert f"{tmp_path}: is a folder. Give the generator.safetensors" in refusal(tmp_path, teacher)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        *(
            (lambda card, name=name: card.pop(name), f"'{name}' is missing")
            for name in ("method", "settings", "seed", "teacher", "input", "lessons", "batch_size")
        ),
        (lambda card: card.update(lessons="many"), "'lessons' must be a whole number"),
        (lambda card: card.update(settings=None), "'settings' must be a section"),
        (lambda card: card.update(seed=True), "'seed' must be a whole number, and is True"),
        (lambda card: card.update(seed=2**80), "'seed' must be a number from 0 to 2**63"),
        (lambda card: card.update(mean=None), "'mean' must be a list of numbers, and is None"),
        (lambda card: card.update(std=["a"]), "'std' must be a list of numbers, and is ['a']"),
        (lambda card: card.update(batch_size=0), "'batch_size' must be at least 2"),
        (lambda card: card.update(method="qimora"), "Did you mean 'qimera'"),
        (lambda card: card["settings"].update(width=-1), "'width' must be positive"),
        (lambda card: card["settings"].update(colour=1), "colour"),
        (lambda card: card["settings"].update(mapped=9), "is 30x6, not 30x9 (and 2 more)"),
    ],
)
def test_a_damaged_card_is_refused_and_named(
    change: Callable[[dict[str, Any]], Any],
    said: str,
    whole: Path,
    teacher: Teacher,
    tmp_path: Path,
) -> None:
    def changed(card: dict[str, Any]) -> dict[str, Any]:
        change(card)
        return card

    path = rewritten(whole, tmp_path / "g.safetensors", card=changed)
    found = refusal(path, teacher)
    assert found.startswith(f"{path}: ")
    assert said in found


@pytest.mark.parametrize(("text", "said"), [("{", "it is no JSON"), ("[1]", "it is no section")])
def test_a_card_that_is_no_card_is_refused(
    text: str, said: str, whole: Path, teacher: Teacher, tmp_path: Path
) -> None:
    path = tmp_path / "g.safetensors"
    save_file(read_generator(whole)[1], path, metadata={CARD: text})
    assert said in refusal(path, teacher)


LINEAR = "backbone.linear.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: {k: v for k, v in t.items() if k != LINEAR}, f"{LINEAR} is missing, not 30x6"),
        (lambda t: t | {LINEAR: torch.zeros(30, 7)}, f"{LINEAR} is 30x7, not 30x6"),
        (lambda t: t | {"extra": torch.zeros(2, 3)}, "extra is 2x3, not missing"),
        (lambda t: {"a": torch.zeros(()), "b": torch.zeros(1)}, "a is one number, not missing"),
    ],
)
def test_tensors_of_other_names_or_shapes_are_refused_and_named(
    change: Callable[[dict[str, Any]], dict[str, Any]],
    said: str,
    whole: Path,
    teacher: Teacher,
    tmp_path: Path,
) -> None:
    path = rewritten(whole, tmp_path / "g.safetensors", tensors=change)
    found = refusal(path, teacher)
    assert found.startswith(f"{path}: ")
    assert said in found
    assert "not the network of qimera" in found


def test_how_many_differ_is_told_and_nothing_is_taken_over(teacher: Teacher, whole: Path) -> None:
    source = generation.source(teacher, "qimera", seed=9, **SMALL)
    before = {name: value.clone() for name, value in source.generator.state_dict().items()}
    card, network = read_generator(whole)
    del network[LINEAR], network["backbone.conv1.bias"]
    with pytest.raises(ImagesError, match=r"\(and 1 more\)"):
        source.load_network(network, card)
    for name, value in source.generator.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_another_teachers_generator_is_refused(whole: Path) -> None:
    other = two_convolutions((4, 3))
    assert "was trained for another teacher" in refusal(whole, other)


@pytest.mark.parametrize("name", ["mean", "std"])
def test_a_generator_for_other_pixel_constants_is_refused(
    name: str, whole: Path, teacher: Teacher, tmp_path: Path
) -> None:
    others = {name: (0.4, 0.35, 0.2)}
    told = refusal(whole, replace(teacher, input=replace(teacher.input, **others)))
    before = {"mean": "0.5,0.4,0.45", "std": "0.25,0.2,0.3"}[name]
    assert f"{name} {before}, and here it is 0.4,0.35,0.2" in told
    # Files of earlier versions do not tell them.
    older = rewritten(
        whole, tmp_path / "g.safetensors", card=lambda c: {k: v for k, v in c.items() if k != name}
    )
    assert generation.generator_from(older, teacher).drawn(2, seed=1).images.shape[0] == 2
