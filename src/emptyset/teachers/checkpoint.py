"""``file:WEIGHTS`` your own network: a function that builds it, and a file with its weights."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emptyset.errors import TeacherError
from emptyset.registry import nearest
from emptyset.teachers.assemble import assemble
from emptyset.teachers.outside import building
from emptyset.teachers.request import TeacherRequest
from emptyset.teachers.teacher import Teacher
from emptyset.teachers.unwrapping import unwrapped
from emptyset.teachers.weights import put_weights


def load(request: TeacherRequest) -> Teacher:
    """See ``load_teacher``."""
    if request.model is None:
        raise TeacherError(
            f"{request.full_name}: weights alone do not say what to compute. Missing: "
            "--model module:function, the function that builds the network."
        )
    if request.name and request.weights is not None:
        raise TeacherError(
            f"{request.full_name}: two files of weights are named, '{request.name}' and "
            f"--weights '{request.weights}'. Leave one out."
        )
    # Before anything is built, so that a missing option is not hidden behind a slow start.
    spec = request.input(None)
    with _current_folder_on_path():
        build = find_factory(request.model)
        module = unwrapped(_call(request, build))
    path = Path(request.name) if request.name else request.weights
    provenance: dict[str, Any] = {"source": "file", "model": request.model}
    if path is not None:
        _refuse_no_module(request, module)
        provenance |= put_weights(request, module, path)
    else:
        provenance["weights"] = "the function's own"
    return assemble(request, module, known_input=spec, provenance=provenance)


def find_factory(model: str) -> Callable[..., Any]:
    """Import ``module.sub:function``.

    Raises:
        TeacherError: The text, the module or the function cannot be used; says which.
    """
    module_name, colon, function_name = model.partition(":")
    if not colon or not module_name or not function_name:
        raise TeacherError(
            f"--model {model}: expected module:function, for example my_package.nets:build."
        )
    if "/" in module_name or module_name.endswith(".py"):
        proposal = module_name.removesuffix(".py").replace("/", ".").lstrip(".")
        raise TeacherError(
            f"--model {model}: expected the name of a module, not of a file. Did you mean "
            f"{proposal}:{function_name}?"
        )
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and not f"{module_name}.".startswith(f"{error.name}."):
            raise TeacherError(
                f"--model {model}: '{module_name}' was found, but it imports '{error.name}', "
                "which is not installed."
            ) from error
        raise TeacherError(
            f"--model {model}: no module called '{error.name or module_name}' on the Python path "
            f"or in the current folder ({Path.cwd()}). Go to the folder that holds it, or set "
            "PYTHONPATH."
        ) from error
    except Exception as error:
        raise TeacherError(
            f"--model {model}: importing '{module_name}' failed ({type(error).__name__}: {error})."
        ) from error
    for part in function_name.split("."):
        if not hasattr(found, part):
            names = [name for name in dir(found) if not name.startswith("_")]
            raise TeacherError(
                f"--model {model}: '{module_name}' has no '{function_name}'.{nearest(part, names)}"
            )
        found = getattr(found, part)
    if not callable(found):
        raise TeacherError(
            f"--model {model}: expected a function or a class that builds the network, got "
            f"{type(found).__name__}."
        )
    factory: Callable[..., Any] = found
    return factory


def _call(request: TeacherRequest, build: Callable[..., Any]) -> Any:
    """Call the user's function; its errors keep their own text and trace."""
    with building(request):
        try:
            return build(**request.model_args)
        except Exception as error:
            raise TeacherError(
                f"--model {request.model}: the function failed with arguments "
                f"{request.model_args} ({type(error).__name__}: {error})."
            ) from error


def _refuse_no_module(request: TeacherRequest, module: Any) -> None:
    if not hasattr(module, "state_dict"):
        raise TeacherError(
            f"--model {request.model}: expected the function to return a torch.nn.Module, got "
            f"{type(module).__name__}."
        )


@contextmanager
def _current_folder_on_path() -> Iterator[None]:
    """Let imports see the current folder, inside only."""
    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before
