"""What lies outside: optional packages that may be missing, hubs that may be out of reach."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch

from emptyset.errors import EmptysetError, MissingExtraError, TeacherError
from emptyset.teachers.request import TeacherRequest


def import_extra(module: str, *, extra: str, needed_by: str) -> Any:
    """Import an optional package.

    Args:
        module: Its import name.
        extra: The extra of emptyset that installs it.
        needed_by: What the user asked for, to begin the message with.

    Raises:
        MissingExtraError: It is not installed.
        TeacherError: It is installed but does not import.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{needed_by} needs the package {error.name or package}, which is not installed. "
            f'Run: pip install "emptyset[{extra}]"'
        ) from error
    except Exception as error:
        # A torchvision built for another torch raises RuntimeError here, for example.
        raise TeacherError(
            f"{needed_by}: {package} is installed but cannot be imported "
            f"({type(error).__name__}: {error}). Often its version does not belong to the "
            f'installed torch {torch.__version__}. Run: pip install --upgrade "emptyset[{extra}]"'
        ) from error


@contextmanager
def building(request: TeacherRequest) -> Iterator[None]:
    """Build or download a network: fixed seed inside, clear errors out of it.

    The global random state is as before afterwards. What the source prints goes to stderr, so
    that stdout stays free for results.

    Raises:
        TeacherError: Instead of whatever the source raised.
    """
    try:
        with torch.random.fork_rng(devices=[]), redirect_stdout(sys.stderr):
            # The CPU's generator alone: ``torch.manual_seed`` would also set those of other
            # devices, which are not restored here.
            torch.default_generator.manual_seed(0)
            yield
    except EmptysetError:
        raise
    except TypeError as error:
        raise TeacherError(
            f"{request.full_name}: the network cannot be built ({error}). Check --model-args: "
            f"{request.model_args}."
        ) from error
    except Exception as error:
        # Every hub has its own errors for "no network", "not found" and "damaged".
        if not request.wants_hub_weights:
            raise TeacherError(
                f"{request.full_name}: the network cannot be built ({type(error).__name__}: "
                f"{error}). Check the name and --model-args: {request.model_args}."
            ) from error
        raise TeacherError(
            f"{request.full_name}: the pretrained weights could not be had "
            f"({type(error).__name__}: {error}). Without a network, fetch them on another "
            "machine and pass `--weights FILE` (safetensors or a PyTorch checkpoint)."
        ) from error
