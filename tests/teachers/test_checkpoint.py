import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from emptyset.errors import TeacherError
from emptyset.teachers import Teacher, load_teacher

Load = Callable[..., Teacher]


def test_the_teacher_computes_what_the_network_computed(
    load_file_teacher: Load, weights: Path, network: nn.Module
) -> None:
    teacher = load_file_teacher(weights)
    images = torch.randn(4, 2, 8, 9, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.equal(teacher.module(images), network(images))
    assert not any(parameter.requires_grad for parameter in teacher.module.parameters())
    assert teacher.provenance["model"] == "nets_of_a_user:build"
    assert teacher.input.mean == (0.4, 0.5)


def test_the_search_path_is_as_before(load_file_teacher: Load, weights: Path) -> None:
    before = list(sys.path)
    load_file_teacher(weights)
    assert sys.path == before
    with pytest.raises(TeacherError):
        load_file_teacher(model="nets_of_a_user:fails")
    assert sys.path == before


def test_the_function_gets_its_keyword_arguments(load_file_teacher: Load) -> None:
    teacher = load_file_teacher(model_args={"classes": 11})
    assert teacher.module(teacher.example()).shape == (2, 11)
    assert teacher.provenance["model_args"] == {"classes": 11}


def test_a_function_may_sit_in_a_package_and_in_a_class(
    load_file_teacher: Load, user_folder: Path
) -> None:
    package = user_folder / "package_of_a_user"
    package.mkdir()
    (package / "deep.py").write_text((user_folder / "nets_of_a_user.py").read_text())
    teacher = load_file_teacher(model="package_of_a_user.deep:Nested.build")
    assert teacher.module(teacher.example()).shape == (2, 4)


def test_a_function_that_draws_weights_draws_the_same_each_time(load_file_teacher: Load) -> None:
    assert load_file_teacher().weights_hash == load_file_teacher().weights_hash


def test_half_precision_becomes_float32(load_file_teacher: Load) -> None:
    teacher = load_file_teacher(model="nets_of_a_user:half")
    assert {p.dtype for p in teacher.module.parameters()} == {torch.float32}


def test_what_the_function_prints_does_not_reach_stdout(
    load_file_teacher: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    load_file_teacher(model="nets_of_a_user:prints")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "loading\n"


def test_each_missing_option_is_named(user_folder: Path) -> None:
    with pytest.raises(TeacherError, match="Missing: --model module:function"):
        load_teacher("file:weights.safetensors")
    model = "nets_of_a_user:build"
    with pytest.raises(TeacherError, match="Missing: --input CxHxW, --std a,b,c"):
        load_teacher("file:weights.safetensors", model=model, mean=(0.4, 0.5))
    with pytest.raises(TeacherError, match=r"Missing: --mean a,b,c \("):
        load_teacher("file:", model=model, input_shape=(2, 8, 9), std=(0.2, 0.3))


def test_two_files_of_weights_are_refused(load_file_teacher: Load, weights: Path) -> None:
    with pytest.raises(TeacherError, match="two files of weights are named"):
        load_file_teacher(weights, weights=weights)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nets_of_a_user", "expected module:function"),
        ("nets_of_a_user:", "expected module:function"),
        ("nets_of_a_user.py:build", r"Did you mean nets_of_a_user:build\?"),
        ("folder/nets.py:build", r"Did you mean folder\.nets:build\?"),
        ("nets_of_nobody:build", "no module called 'nets_of_nobody'"),
        ("nets_of_nobody.deep:build", "no module called 'nets_of_nobody'"),
        ("nets_of_a_user:buidl", r"has no 'buidl'. Did you mean 'build'\?"),
        ("nets_of_a_user:not_callable", "expected a function or a class.*got int"),
        ("nets_of_a_user:fails", "RuntimeError: no licence for this network"),
        ("nets_of_a_user:text", r"expected a torch.nn.Module, got str"),
        ("nets_of_a_user:feature_map", r"expected logits \(2, K\).*shape \(2, 3, 8, 9\)"),
        ("nets_of_a_user:single_output", r"at least 2 classes.*shape \(2, 1\)"),
        ("nets_of_a_user:pair", "expected logits as one tensor.*got tuple"),
        ("nets_of_a_user:overflows", "the logits of two images.*NaN or infinity"),
        ("nets_of_a_user:other_size", "fails on two images of 2x8x9.*--input"),
    ],
)
def test_a_function_that_gives_no_classifier_is_explained(
    load_file_teacher: Load, model: str, message: str
) -> None:
    with pytest.raises(TeacherError, match=message):
        load_file_teacher(model=model)


def test_a_function_that_gives_no_network_is_explained_before_its_weights(
    load_file_teacher: Load, weights: Path
) -> None:
    with pytest.raises(TeacherError, match=r"return a torch.nn.Module, got str"):
        load_file_teacher(weights, model="nets_of_a_user:text")


def test_wrong_arguments_of_the_function_are_shown(load_file_teacher: Load) -> None:
    with pytest.raises(TeacherError, match=r"\{'clases': 3\}.*unexpected keyword.*'clases'"):
        load_file_teacher(model_args={"clases": 3})


def test_a_module_that_cannot_be_imported_keeps_its_own_error(
    load_file_teacher: Load, user_folder: Path
) -> None:
    (user_folder / "broken_nets.py").write_text("1 / 0\n")
    with pytest.raises(TeacherError, match="ZeroDivisionError: division by zero"):
        load_file_teacher(model="broken_nets:build")
    (user_folder / "needy_nets.py").write_text("import package_nobody_has\n")
    with pytest.raises(TeacherError, match="it imports 'package_nobody_has'"):
        load_file_teacher(model="needy_nets:build")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": (0.4, 0.5, 0.6)}, r"2 channels, but mean has 3 values \(0.4, 0.5, 0.6\)"),
        ({"std": (0.4,)}, "2 channels, but std has 1 values"),
        ({"std": (0.4, 0.0)}, "std must be above 0"),
        ({"mean": (123.7, 116.3)}, "are to be divided by 255"),
        ({"std": (58.4, 57.1)}, "are to be divided by 255"),
        ({"mean": (0.4, float("nan"))}, "mean must be finite"),
        ({"input_shape": (2, 0, 9)}, "each at least 1. Got 2x0x9"),
    ],
)
def test_preprocessing_that_does_not_fit_is_refused(
    load_file_teacher: Load, changes: dict[str, tuple[float, ...]], message: str
) -> None:
    with pytest.raises(TeacherError, match=message):
        load_file_teacher(**changes)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.txt", "ant\nbee\ncat\ndog\n\nelk\n"),
        ("list.json", '["ant", "bee", "cat", "dog", "elk"]'),
        ("index.json", '{"1": "bee", "0": "ant", "2": "cat", "4": "elk", "3": "dog"}'),
    ],
)
def test_class_names_are_read_from_text_or_json(
    load_file_teacher: Load, user_folder: Path, name: str, text: str
) -> None:
    (user_folder / name).write_text(text)
    teacher = load_file_teacher(classes=user_folder / name)
    assert teacher.class_names == ("ant", "bee", "cat", "dog", "elk")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("few.txt", "ant\nbee\n", "2 class names, but file:nets_of_a_user:build gives 5 logits"),
        ("broken.json", '["ant", ', "not readable as class names"),
        ("gap.json", '{"0": "ant", "2": "bee"}', "not readable as class names"),
        ("number.json", "5", "not readable as class names"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(
    load_file_teacher: Load, user_folder: Path, name: str, text: str, message: str
) -> None:
    (user_folder / name).write_text(text)
    with pytest.raises(TeacherError, match=message):
        load_file_teacher(classes=user_folder / name)


def test_a_file_of_class_names_that_is_not_there_is_named(load_file_teacher: Load) -> None:
    with pytest.raises(TeacherError, match=r"nowhere.txt: not readable as class names"):
        load_file_teacher(classes=Path("nowhere.txt"))
