import hashlib
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from emptyset.errors import TeacherError
from emptyset.teachers import Teacher
from emptyset.teachers.teacher import hash_of_weights

Load = Callable[..., Teacher]


class CodeInAPickle:
    """Would run on opening."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (list, ((1, 2),))


def test_the_hash_is_the_one_that_plain_hashlib_gives(network: nn.Module) -> None:
    digest = hashlib.sha256()
    for name in sorted(network.state_dict()):
        value = network.state_dict()[name]
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode() + value.numpy().tobytes())
    assert hash_of_weights(network) == digest.hexdigest()


def test_the_file_is_identified_by_its_own_hash(load_file_teacher: Load, weights: Path) -> None:
    teacher = load_file_teacher(weights)
    assert teacher.provenance["file_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert teacher.provenance["file"] == str(weights)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "best": torch.tensor(0.9)},
        lambda state: {"model": state},
        lambda state: {"state_dict_ema": state, "state_dict": {k: v + 1 for k, v in state.items()}},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"module._orig_mod.{k}": v for k, v in state.items()}},
        lambda state: {f"model.{key}": value for key, value in state.items()},
        lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
        lambda state: {
            k: v.half().float().half() if v.is_floating_point() else v for k, v in state.items()
        },
    ],
)
def test_known_wrappings_are_opened(
    load_file_teacher: Load,
    network: nn.Module,
    user_folder: Path,
    wrap: Callable[[dict[str, Tensor]], dict[str, Any]],
) -> None:
    torch.save(wrap(dict(network.state_dict())), user_folder / "checkpoint.pt")
    teacher = load_file_teacher(user_folder / "checkpoint.pt")
    for key, value in network.state_dict().items():
        torch.testing.assert_close(teacher.module.state_dict()[key], value, atol=1e-3, rtol=0)


def test_safetensors_under_another_name_are_recognised(
    load_file_teacher: Load, weights: Path, user_folder: Path
) -> None:
    weights.rename(user_folder / "weights.bin")
    assert load_file_teacher("weights.bin").weights_hash


def test_missing_and_unexpected_names_are_listed_in_short(
    load_file_teacher: Load, network: nn.Module, user_folder: Path
) -> None:
    state = dict(network.state_dict())
    state["head.weight"] = state.pop("5.weight")
    state["head.bias"] = state.pop("5.bias")
    state |= {f"extra.{letter}": torch.zeros(1) for letter in "ab"}
    save_file(state, user_folder / "other.safetensors")
    with pytest.raises(TeacherError) as caught:
        load_file_teacher("other.safetensors")
    message = str(caught.value)
    assert "do not fit Sequential" in message
    assert "2 missing: 5.weight, 5.bias" in message
    assert "4 unexpected: " in message
    assert " and 1 more" in message
    assert "--model-args" in message


def test_another_shape_is_told_with_both_shapes(load_file_teacher: Load, weights: Path) -> None:
    with pytest.raises(
        TeacherError,
        match=r"2 of another shape or kind: 5.bias \(float32 \(5,\) in the file, "
        r"float32 \(6,\) in the network\)",
    ):
        load_file_teacher(weights, model_args={"classes": 6})


def test_integers_are_not_taken_for_weights(
    load_file_teacher: Load, network: nn.Module, user_folder: Path
) -> None:
    state = dict(network.state_dict())
    state["0.weight"] = state["0.weight"].to(torch.int8)
    save_file(state, user_folder / "codes.safetensors")
    with pytest.raises(TeacherError, match=r"0.weight \(int8 \(3, 2, 3, 3\) in the file"):
        load_file_teacher("codes.safetensors")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(
    load_file_teacher: Load, network: nn.Module, user_folder: Path, bad: float
) -> None:
    network[5].weight.data[1, 2] = bad
    torch.save(network.state_dict(), user_folder / "bad.pt")
    with pytest.raises(TeacherError, match=r"'5.weight' holds 1 of 15 values that are NaN"):
        load_file_teacher("bad.pt")


def test_a_network_that_brings_bad_weights_itself_is_refused(
    load_file_teacher: Load, user_folder: Path
) -> None:
    text = (user_folder / "nets_of_a_user.py").read_text()
    text += "\ndef bad():\n    n = build()\n    n[1].running_var[0] = float('nan')\n    return n\n"
    (user_folder / "bad_nets.py").write_text(text)
    with pytest.raises(TeacherError, match=r"file:bad_nets:bad: '1.running_var' holds 1 of 3"):
        load_file_teacher(model="bad_nets:bad")


@pytest.mark.parametrize("kept", [0, 5, 40, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["safetensors", "pt", "old.pt"])
def test_a_file_that_is_cut_off_is_recognised(
    load_file_teacher: Load, network: nn.Module, user_folder: Path, kind: str, kept: float
) -> None:
    path = user_folder / f"cut.{kind}"
    if kind == "safetensors":
        save_file(network.state_dict(), path)
    else:
        torch.save(
            network.state_dict(), path, _use_new_zipfile_serialization=not kind.startswith("old")
        )
    content = path.read_bytes()
    size = int(kept * len(content)) if isinstance(kept, float) else kept
    path.write_bytes(content[:size])
    with pytest.raises(TeacherError, match=rf"not readable as.*\({size} bytes.*fetch it again"):
        load_file_teacher(path)


def test_a_file_of_another_kind_is_recognised(load_file_teacher: Load, user_folder: Path) -> None:
    (user_folder / "page.pt").write_text("<html>404: not found</html>")
    with pytest.raises(TeacherError, match="not readable as safetensors or as a PyTorch"):
        load_file_teacher("page.pt")


def test_a_file_that_is_not_there_is_named(load_file_teacher: Load, user_folder: Path) -> None:
    with pytest.raises(TeacherError, match=r"nowhere\.pt: this weights file does not exist"):
        load_file_teacher("nowhere.pt")
    with pytest.raises(TeacherError, match="this weights file is a folder"):
        load_file_teacher(user_folder)


def test_a_checkpoint_without_weights_says_what_it_holds(
    load_file_teacher: Load, user_folder: Path
) -> None:
    torch.save({"epoch": 3, "loss": [0.1]}, user_folder / "log.pt")
    with pytest.raises(TeacherError, match="found epoch, loss that are no tensors"):
        load_file_teacher("log.pt")
    torch.save([torch.zeros(2)], user_folder / "list.pt")
    with pytest.raises(TeacherError, match=r"expected a state dict.*got list"):
        load_file_teacher("list.pt")


@pytest.mark.parametrize("old_format", [False, True])
def test_a_pickle_that_needs_code_is_refused_until_it_is_allowed(
    load_file_teacher: Load, network: nn.Module, user_folder: Path, old_format: bool
) -> None:
    content = {"state_dict": network.state_dict(), "options": CodeInAPickle()}
    path = user_folder / "code.pt"
    torch.save(content, path, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(
        TeacherError, match=r"runs code.*GLOBAL \S*CodeInAPickle|runs code.*\(.+\)"
    ) as caught:
        load_file_teacher(path)
    assert "--allow-pickle" in str(caught.value)
    assert "safetensors" in str(caught.value)
    teacher = load_file_teacher(path, allow_pickle=True)
    assert torch.equal(teacher.module.state_dict()["5.bias"], network.state_dict()["5.bias"])


def test_a_whole_pickled_network_gives_its_weights_when_it_is_allowed(
    load_file_teacher: Load, network: nn.Module, user_folder: Path
) -> None:
    torch.save(network, user_folder / "network.pt")
    with pytest.raises(TeacherError, match="runs code when it is opened"):
        load_file_teacher("network.pt")
    teacher = load_file_teacher("network.pt", allow_pickle=True)
    assert teacher.weights_hash == hash_of_weights(network)


def test_a_pickle_whose_code_is_not_here_is_explained(
    load_file_teacher: Load, user_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("module_nobody_has")
    module.Thing = type("Thing", (), {"__module__": module.__name__})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    torch.save({"state_dict": {}, "thing": module.Thing()}, user_folder / "foreign.pt")
    monkeypatch.delitem(sys.modules, module.__name__)
    with pytest.raises(TeacherError, match=r"needs code that is not here.*module_nobody_has"):
        load_file_teacher("foreign.pt", allow_pickle=True)


def test_the_architecture_alone_reads_no_file(load_file_teacher: Load) -> None:
    teacher = load_file_teacher("nowhere.safetensors", pretrained=False)
    assert teacher.provenance["weights"] == "none (architecture only)"
