"""A tiny network, its module on disk, and a machine without a network."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from emptyset.teachers import Teacher, load_teacher

NETS = '''
"""Networks of a user."""
import torch
from torch import nn


def build(classes=5, width=3):
    return nn.Sequential(
        nn.Conv2d(2, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes),
    )


class Nested:
    @staticmethod
    def build():
        return build(classes=4)


def fails():
    raise RuntimeError("no licence for this network")


def text():
    return "not a network"


def feature_map():
    return nn.Conv2d(2, 3, 1)


def pair():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x
    return Pair()


def single_output():
    return nn.Sequential(nn.Flatten(), nn.Linear(2 * 8 * 9, 1))


def overflows():
    network = build()
    network[0].weight.data.fill_(3e38)
    return network


def other_size():
    return nn.Sequential(nn.Flatten(), nn.Linear(7, 3))


def half():
    return build().half()


def prints():
    print("loading")
    return build()


not_callable = 3
'''


@pytest.fixture(scope="session")
def module_name(tmp_path_factory: pytest.TempPathFactory) -> str:
    return "nets_of_a_user"


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `nets_of_a_user.py` in it."""
    (tmp_path / "nets_of_a_user.py").write_text(NETS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def network(user_folder: Path) -> nn.Module:
    """The network that `nets_of_a_user:build` gives, with weights of its own."""
    namespace: dict[str, Any] = {}
    exec(NETS, namespace)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        module: nn.Module = namespace["build"]()
    module[1].running_mean.copy_(torch.tensor([0.1, -0.2, 0.3]))
    return module.eval()


@pytest.fixture
def weights(user_folder: Path, network: nn.Module) -> Path:
    path = user_folder / "weights.safetensors"
    save_file(network.state_dict(), path)
    return path


@pytest.fixture
def load_file_teacher(user_folder: Path) -> Callable[..., Teacher]:
    """`file:` with everything it needs; any argument can be replaced."""

    def load(path: Path | str = "", **changes: Any) -> Teacher:
        options: dict[str, Any] = {
            "model": "nets_of_a_user:build",
            "input_shape": (2, 8, 9),
            "mean": (0.4, 0.5),
            "std": (0.2, 0.3),
        }
        return load_teacher(f"file:{path}", **{**options, **changes})

    return load


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
