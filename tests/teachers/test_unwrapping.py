"""Networks inside DataParallel and torch.compile: loaded, quantized and hashed as they are."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import emptyset
from emptyset.images.input_spec import InputSpec
from emptyset.teachers import Teacher, load_teacher
from emptyset.teachers.teacher import hash_of_weights
from emptyset.teachers.unwrapping import unwrapped

SPEC = InputSpec(shape=(2, 8, 9), mean=(0.4, 0.5), std=(0.2, 0.25))
WRAPPERS = {
    "parallel": nn.DataParallel,
    "compiled": torch.compile,
    "compiled and parallel": lambda module: nn.DataParallel(torch.compile(module)),
    "parallel and compiled": lambda module: torch.compile(nn.DataParallel(module)),
}


def build() -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(3, 5),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module.requires_grad_(False).eval()


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_network_is_the_network_inside(name: str) -> None:
    module = build()
    wrapped: Any = WRAPPERS[name](module)
    assert unwrapped(wrapped) is module
    assert Teacher("test:net", wrapped, SPEC).module is module
    assert hash_of_weights(wrapped) == hash_of_weights(module)


def test_what_is_not_wrapped_stays_what_it_is() -> None:
    module = build()
    assert unwrapped(module) is module
    assert unwrapped("text") == "text"

    class Own(nn.Module):
        """Has a part that it calls `module`, as many do."""

        def __init__(self) -> None:
            super().__init__()
            self.module = build()

    own = Own()
    assert unwrapped(own) is own


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_whole_way_from_python(name: str) -> None:
    def quantized(module: Any) -> torch.Tensor:
        teacher = emptyset.Teacher("test:net", module, SPEC)
        images = emptyset.synthesize(teacher, "zeroq", 6, steps=2, batch_size=6)
        student = emptyset.prepare(teacher, "w4a4", plan="every_layer")
        emptyset.refine(student, images, "calibrate")
        with torch.no_grad():
            return student(images.images)

    module = build()
    assert torch.equal(quantized(WRAPPERS[name](copy.deepcopy(module))), quantized(module))


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_a_factory_may_give_a_wrapped_network(
    prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wrapped_nets.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def plain():\n"
        "    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(),\n"
        "                         nn.Linear(3 * 6 * 7, 5))\n"
        "def parallel():\n"
        "    return nn.DataParallel(plain())\n"
    )
    monkeypatch.chdir(tmp_path)
    load: Callable[..., Teacher] = load_teacher
    options: dict[str, Any] = {
        "input_shape": SPEC.shape, "mean": SPEC.mean, "std": SPEC.std, "allow_pickle": False,
    }  # fmt: skip
    plain = load("file:", model="wrapped_nets:plain", **options)
    stored = {f"{prefix}{k}": v for k, v in plain.module.state_dict().items()}
    torch.save(stored, tmp_path / "weights.pt")
    loaded = load("file:weights.pt", model="wrapped_nets:parallel", **options)
    assert isinstance(loaded.module, nn.Sequential)
    assert loaded.weights_hash == plain.weights_hash
