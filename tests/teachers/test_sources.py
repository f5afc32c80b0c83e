"""timm, torchvision, pytorchcv and transformers: without a network, and without the package."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from emptyset.errors import MissingExtraError, TeacherError, UnknownNameError
from emptyset.teachers import load_teacher, teacher_sources
from emptyset.teachers.huggingface import input_from_processor

SMALL = {"num_classes": 7}
HUBS = [
    ("timm:resnet10t", "timm"),
    ("torchvision:squeezenet1_1", "torchvision"),
    ("pytorchcv:resnet20_cifar10", "pytorchcv.model_provider"),
    ("hf:some/name", "transformers"),
]


def halved(module: nn.Module) -> dict[str, Tensor]:
    """Weights that can be told from those of the module."""
    state = module.state_dict()
    return {key: value / 2 if value.is_floating_point() else value for key, value in state.items()}


def test_every_source_has_a_sentence_and_a_file() -> None:
    sources = teacher_sources()
    assert [prefix for prefix, _ in sources] == [
        "embedded", "timm", "torchvision", "pytorchcv", "hf", "file",
    ]  # fmt: skip
    assert all(sentence.endswith(".") for _, sentence in sources)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tim:resnet18", r"No source of teachers is called 'tim:'. Did you mean 'timm'\?"),
        ("resnet18", "does not say where it comes from"),
        ("", "does not say where it comes from"),
        ("timm:resnt18", r"timm has no network called 'resnt18'. Did you mean 'resnet18'\?"),
        ("timm:resnet18.a1_in", r"no weights called.*Did you mean 'resnet18.a1_in1k'\?"),
        ("torchvision:resnet_18", r"Did you mean 'resnet18'\?"),
        ("torchvision:fasterrcnn_resnet50_fpn", "torchvision has no classifier called"),
        ("torchvision:resnet50.IMAGENET1K_V3", r"Known for resnet50: IMAGENET1K_V1"),
        ("pytorchcv:resnet20_cifar11", r"Did you mean 'resnet20_cifar10'\?"),
    ],
)
def test_an_unknown_name_gets_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        load_teacher(name)


@pytest.mark.parametrize(("name", "module"), HUBS)
def test_a_package_that_is_not_installed_names_the_extra(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r'pip install "emptyset\[models\]"') as caught:
        load_teacher(name)
    assert name in str(caught.value)


def test_a_package_that_does_not_import_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator nms does not exist')\n")
    for loaded in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TeacherError, match=r"installed but cannot be imported.*nms.*torch 2"):
        load_teacher("timm:resnet10t")


@pytest.mark.parametrize(
    "name",
    ["timm:resnet10t.c3_in1k", "torchvision:squeezenet1_1", "pytorchcv:resnet20_cifar10"],
)
def test_without_a_network_the_message_names_the_way_out(
    name: str, no_network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(TeacherError, match="pretrained weights could not be had") as caught:
        load_teacher(name)
    assert "`--weights FILE`" in str(caught.value)


def test_without_a_network_a_name_of_transformers_is_told_from_a_folder(no_network: None) -> None:
    with pytest.raises(TeacherError, match="no such folder here, and the hub did not give it"):
        load_teacher("hf:somebody/some-network")


@pytest.mark.parametrize(
    ("name", "shape", "resize"),
    [
        ("timm:resnet10t.c3_in1k", (3, 176, 176), 201),
        ("torchvision:squeezenet1_1", (3, 224, 224), 256),
        ("pytorchcv:resnet20_cifar10", (3, 32, 32), None),
        ("pytorchcv:squeezeresnet_v1_1", (3, 224, 224), 256),
    ],
)
def test_preprocessing_comes_along(name: str, shape: tuple[int, ...], resize: int | None) -> None:
    spec = load_teacher(name, pretrained=False).input
    assert spec.shape == shape
    assert spec.resize == resize
    assert len(spec.mean) == len(spec.std) == 3
    assert 0.3 < spec.mean[0] < 0.6


@pytest.mark.parametrize("name", ["timm:resnet10t.c3_in1k", "torchvision:squeezenet1_1"])
def test_class_names_come_along(name: str) -> None:
    names = load_teacher(name, pretrained=False).class_names
    assert names is not None
    assert len(names) == 1000
    assert "goldfish" in names[1]


@pytest.mark.parametrize(
    "name", ["timm:resnet10t", "torchvision:squeezenet1_1", "pytorchcv:squeezenet_v1_1"]
)
def test_local_weights_are_loaded_into_the_architecture(
    name: str, no_network: None, tmp_path: Path
) -> None:
    first = load_teacher(name, pretrained=False, model_args=SMALL)
    state = halved(first.module)
    save_file(state, tmp_path / "mine.safetensors")
    teacher = load_teacher(name, weights=tmp_path / "mine.safetensors", model_args=SMALL)
    for key, value in teacher.module.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert teacher.class_names is None
    assert teacher.provenance["weights"] == "file"
    assert teacher.module(teacher.example()).shape == (2, 7)


def test_downloaded_weights_of_pytorchcv_are_opened_without_running_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = importlib.import_module("pytorchcv.models.common.model_store")
    name = "pytorchcv:resnet20_cifar10"
    state = halved(load_teacher(name, pretrained=False).module)
    path = tmp_path / "resnet20_cifar10-0597.pth"
    monkeypatch.setattr(store, "get_model_file", lambda asked: str(path))

    # What the file holds beyond the network is left out, as the package itself does.
    torch.save({**state, "beyond": torch.zeros(1)}, path)
    teacher = load_teacher(name)
    for key, value in teacher.module.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert teacher.provenance["file"] == path.name

    torch.save(teacher.module, path)
    with pytest.raises(TeacherError, match="runs code when it is opened"):
        load_teacher(name)


def test_options_replace_what_the_source_says() -> None:
    teacher = load_teacher(
        "torchvision:squeezenet1_1",
        pretrained=False,
        input_shape=(3, 64, 48),
        mean=(0.1, 0.2, 0.3),
    )
    assert teacher.input.shape == (3, 64, 48)
    assert teacher.input.mean == (0.1, 0.2, 0.3)
    assert teacher.input.std == pytest.approx((0.229, 0.224, 0.225))
    # The resize before the crop shrinks with it: 256 · 48 / 224.
    assert teacher.input.resize == 55


@pytest.mark.parametrize("name", ["timm:resnet10t", "torchvision:squeezenet1_1"])
def test_wrong_arguments_of_a_constructor_are_shown(name: str) -> None:
    with pytest.raises(TeacherError, match=r"--model-args: \{'nope': 3\}"):
        load_teacher(name, pretrained=False, model_args={"nope": 3})


def test_a_model_belongs_to_file_teachers() -> None:
    with pytest.raises(TeacherError, match="belongs to `file:`"):
        load_teacher("timm:resnet10t", model="a:b")


def test_heads_that_only_training_calls_are_dropped() -> None:
    teacher = load_teacher("torchvision:googlenet", pretrained=False)
    assert teacher.module.transform_input
    assert not any("aux" in norm.name for norm in teacher.stored_batch_norms())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small classifier as transformers saves it."""
    transformers = pytest.importorskip("transformers")
    labels = {0: "ant", 1: "bee", 2: "cat"}
    config = transformers.ResNetConfig(
        id2label=labels,
        label2id={name: index for index, name in labels.items()},
        embedding_size=4,
        hidden_sizes=[4, 6],
        depths=[1, 1],
        layer_type="basic",
    )
    transformers.utils.logging.disable_progress_bar()
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path / "saved")
    processor = {"size": {"shortest_edge": 36}, "crop_size": {"height": 30, "width": 32},
                 "do_center_crop": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2] * 3,
                 "resample": 3}  # fmt: skip
    (tmp_path / "saved" / "preprocessor_config.json").write_text(json.dumps(processor))
    return tmp_path / "saved"


def test_a_folder_of_transformers_gives_plain_logits(folder: Path) -> None:
    from transformers import AutoModelForImageClassification

    teacher = load_teacher(f"hf:{folder}")
    assert teacher.class_names == ("ant", "bee", "cat")
    assert teacher.input.shape == (3, 30, 32)
    assert teacher.input.resize == 36
    assert teacher.input.interpolation == "bicubic"
    images = torch.randn(2, 3, 30, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = AutoModelForImageClassification.from_pretrained(folder).eval()(images).logits
        torch.testing.assert_close(teacher.module(images), expected)


def test_a_folder_of_transformers_takes_local_weights(folder: Path, tmp_path: Path) -> None:
    first = load_teacher(f"hf:{folder}")
    state = halved(first.module.network)
    save_file(state, tmp_path / "mine.safetensors")
    second = load_teacher(f"hf:{folder}", weights=tmp_path / "mine.safetensors")
    for key, value in second.module.network.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_a_backbone_without_a_classifier_is_not_filled_up_at_random(folder: Path) -> None:
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in state.items() if not key.startswith("classifier")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TeacherError, match=r"2 weights are not in the checkpoint \(classifier"):
        load_teacher(f"hf:{folder}")


def test_a_folder_without_preprocessing_asks_for_it(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(TeacherError, match="Missing: --input CxHxW, --mean a,b,c, --std a,b,c"):
        load_teacher(f"hf:{folder}")
    teacher = load_teacher(
        f"hf:{folder}", input_shape=(3, 24, 32), mean=(0.5,) * 3, std=(0.25,) * 3
    )
    assert teacher.input.shape == (3, 24, 32)


def test_a_folder_of_something_else_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="this folder is no transformers image classifier"):
        load_teacher(f"hf:{tmp_path}")
    with pytest.raises(TeacherError, match="needs a name on the hub or a folder"):
        load_teacher("hf:")


@pytest.mark.parametrize(
    "stored",
    [
        {"image_mean": [0.5], "image_std": [0.25]},
        {"image_mean": [0.1], "image_std": [0.3], "rescale_factor": 1 / 127.5,
         "rescale_offset": True},
        {"do_normalize": False},
        {"do_normalize": False, "do_rescale": False},
    ],
)  # fmt: skip
def test_a_processor_becomes_mean_and_std(stored: dict[str, Any]) -> None:
    spec = input_from_processor({"size": 20, **stored}, channels=1)
    assert spec is not None
    for code in (0, 100, 255):
        # Step by step on 8-bit codes, as transformers does it.
        value = float(code)
        if stored.get("do_rescale", True):
            value *= stored.get("rescale_factor", 1 / 255)
            value -= 1 if stored.get("rescale_offset") else 0
        if stored.get("do_normalize", True):
            value = (value - stored["image_mean"][0]) / stored["image_std"][0]
        ours = spec.normalise(torch.full((1, 1, 2, 3), code / 255))
        assert ours[0, 0, 0, 0].item() == pytest.approx(value, rel=1e-5, abs=1e-5)
