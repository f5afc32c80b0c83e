"""Lets torchvision be imported where its compiled operators do not match torch. For tests only.

A torchvision built for CUDA beside a torch built for the CPU cannot load its own library, and then
its Python files fail while they register shapes for operators that nobody defined (`nms` and
others). No classifier needs these. This file declares them, and only when the library has failed
to load. Put its folder on PYTHONPATH, or call ``install()``; nothing is imported before somebody
imports torchvision.
"""

import importlib.util
import re
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

# The file that fails. torchvision.extension, which loads the library, is imported before it.
WATCHED = "torchvision._meta_registrations"
PATTERN = re.compile(r"register_(?:meta\(\"|fake\(\"torchvision::)(\w+)\"")
KEPT: list[object] = []


class DeclareOperators(MetaPathFinder):
    """Sees the import of the file that fails, declares what it registers, and steps aside."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == WATCHED:
            sys.meta_path.remove(self)
            if not sys.modules["torchvision.extension"]._has_ops():
                declare()
        return None


def declare() -> None:
    """Declare every operator that torchvision registers shapes for."""
    import torch

    spec = importlib.util.find_spec("torchvision")
    folder = Path(next(iter(spec.submodule_search_locations or [])))
    text = (folder / "_meta_registrations.py").read_text(encoding="utf-8")
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in sorted(set(PATTERN.findall(text))):
        library.define(f"{name}(Tensor x) -> Tensor")
    # The declarations live as long as the library object does.
    KEPT.append(library)


def install() -> None:
    """Watch for torchvision, unless it is there or already watched for."""
    # By name: this file may have been loaded before, as another module.
    watched = any(type(finder).__name__ == "DeclareOperators" for finder in sys.meta_path)
    if WATCHED not in sys.modules and not watched:
        sys.meta_path.insert(0, DeclareOperators())


install()
