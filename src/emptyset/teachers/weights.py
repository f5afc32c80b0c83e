"""Reading weights from a file, and putting them into a network, with every reason to refuse."""

import hashlib
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from emptyset.errors import TeacherError
from emptyset.teachers.request import TeacherRequest

# Training scripts wrap the state dict; averaged weights come first, as they are what was measured.
CONTAINERS = (
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
)
# Wrappers (DataParallel, torch.compile, Lightning) put a name before every key.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")
SHOWN = 3
# How torch.load says that a pickle wants more than tensors and containers; all else is damage.
NEEDS_CODE = re.compile(
    r"GLOBAL \S+|Can only (create new object|build) .*|.*unrecognized function.*|.*must be imported"
)


@dataclass(frozen=True)
class StoredWeights:
    """A state dict and where it came from.

    Attributes:
        path: The file.
        tensors: By name, on the CPU.
        container: Keys of the checkpoint that led to them, such as ``state_dict``.
        sha256: Of the file, hexadecimal.
    """

    path: Path
    tensors: dict[str, Tensor]
    container: tuple[str, ...]
    sha256: str


def read_weights(path: Path, *, allow_pickle: bool = False) -> StoredWeights:
    """Read safetensors or a PyTorch checkpoint.

    Args:
        path: The file.
        allow_pickle: Let a checkpoint run code. Only for files you trust.

    Raises:
        TeacherError: The file is missing, damaged, needs code, or holds no weights.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise TeacherError(f"{path}: this weights file {what}. Check the path.")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if _is_safetensors(path):
        try:
            return StoredWeights(path, load_file(path), (), digest)
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error
    found, container = _unwrap(_load_checkpoint(path, allow_pickle))
    if not isinstance(found, Mapping):
        raise TeacherError(
            f"{path}: expected a state dict (names to tensors), got {type(found).__name__}."
        )
    tensors = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    others = [str(key) for key, value in found.items() if not isinstance(value, Tensor)]
    others = [key for key in others if not key.endswith("_extra_state")]
    if not tensors or others:
        raise TeacherError(
            f"{path}: expected a state dict (names to tensors), but found {_some(others)} that "
            f"are no tensors. Known wrappings: {', '.join(CONTAINERS)}. Save "
            "`network.state_dict()` by itself."
        )
    return StoredWeights(path, tensors, container, digest)


def load_into(module: nn.Module, stored: StoredWeights) -> None:
    """Copy the weights into the network, in place.

    Raises:
        TeacherError: Names, shapes or kinds do not fit, or a value is not finite.
    """
    own = module.state_dict()
    own = {key: value for key, value in own.items() if isinstance(value, Tensor)}
    tensors = _without_prefix(stored.tensors, set(own))
    # Checkpoints older than PyTorch 0.4.1 lack these counters; they do not change the result.
    missing = [k for k in own if k not in tensors and not k.endswith("num_batches_tracked")]
    unexpected = [key for key in tensors if key not in own]
    both = [key for key in tensors if key in own]
    unlike = [
        f"{key} ({_kind(tensors[key])} in the file, {_kind(own[key])} in the network)"
        for key in both
        if tensors[key].shape != own[key].shape
        or tensors[key].is_floating_point() != own[key].is_floating_point()
    ]
    problems = [
        f"{len(keys)} {what}: {_some(keys)}"
        for what, keys in [
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape or kind", unlike),
        ]
        if keys
    ]
    if problems:
        raise TeacherError(
            f"{stored.path}: the weights do not fit {type(module).__name__}. "
            f"{'; '.join(problems)}. Check that the network is the one these weights were "
            "trained with, and its arguments (`--model-args`)."
        )
    for key, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise TeacherError(f"{stored.path}: {not_finite(key, value)}")
    module.load_state_dict(tensors, strict=False)


def put_weights(request: TeacherRequest, module: nn.Module, path: Path | None) -> dict[str, Any]:
    """Load ``path`` into the network where the request wants weights from a file.

    Returns:
        What the provenance says about the weights (JSON data).

    Raises:
        TeacherError: As ``read_weights`` and ``load_into``.
    """
    if not request.pretrained:
        return {"weights": "none (architecture only)"}
    if path is None:
        return {"weights": "source"}
    stored = read_weights(path, allow_pickle=request.allow_pickle)
    load_into(module, stored)
    return {
        "weights": "file",
        "file": str(path),
        "file_sha256": stored.sha256,
        "container": list(stored.container),
    }


def not_finite(name: str, value: Tensor) -> str:
    """The sentence that names a tensor with NaN or infinity in it."""
    bad = int((~torch.isfinite(value)).sum())
    return (
        f"'{name}' holds {bad} of {value.numel()} values that are NaN or infinity. Such a network "
        "cannot be quantized: use an earlier checkpoint, or train it again."
    )


def _is_safetensors(path: Path) -> bool:
    """By content, as people rename files: eight bytes of length, then JSON."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _load_checkpoint(path: Path, allow_pickle: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=not allow_pickle)
    except pickle.UnpicklingError as error:
        needs = NEEDS_CODE.search(str(error))
        if allow_pickle or needs is None:
            raise _damaged(path, error) from error
        raise TeacherError(
            f"{path}: this checkpoint is a pickle that runs code when it is opened "
            f"({needs.group().strip()}). Opening it could do anything on your machine. If you "
            "trust where it comes from, pass `--allow-pickle` (in Python: allow_pickle=True); "
            "better, save `network.state_dict()` as safetensors."
        ) from error
    except (ImportError, AttributeError) as error:
        # Only with allow_pickle: the checkpoint names classes that cannot be imported.
        raise TeacherError(
            f"{path}: the pickle needs code that is not here ({error}). Make it importable, or "
            "save `network.state_dict()` where that code is."
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, IndexError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> TeacherError:
    size = path.stat().st_size
    reason = str(error).partition("\n")[0]
    return TeacherError(
        f"{path}: not readable as safetensors or as a PyTorch checkpoint ({size} bytes; "
        f"{type(error).__name__}: {reason}). The file is probably cut off or of another kind: "
        "compare its size with the original, and fetch it again."
    )


def _unwrap(found: Any) -> tuple[Any, tuple[str, ...]]:
    """Follow known wrappings down to the state dict."""
    path: tuple[str, ...] = ()
    while True:
        if isinstance(found, nn.Module):
            return found.state_dict(), path
        if not isinstance(found, Mapping):
            return found, path
        key = next((k for k in CONTAINERS if isinstance(found.get(k), Mapping | nn.Module)), None)
        if key is None:
            return found, path
        found, path = found[key], (*path, key)


def _without_prefix(tensors: dict[str, Tensor], own: set[str]) -> dict[str, Tensor]:
    """Take away what a wrapper put before every name, unless the network has it too."""
    for prefix in PREFIXES * 2:
        if (
            tensors
            and all(key.startswith(prefix) for key in tensors)
            and not any(key.startswith(prefix) for key in own)
        ):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _kind(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
