"""The house: imports point down only, methods stand alone, files stay short and well named."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "emptyset"

# Top to bottom. Parts of one layer may use each other, as long as there is no circle.
LAYERS = [
    {"cli"},
    {"comparison"},
    {"job", "run_folder", "recipe"},
    {"pipeline", "measurement", "generation"},
    {"report"},
    {"exporters", "evaluate", "bit_allocation"},
    {"refiners", "synthesizers", "sources", "selectors"},
    {"reconstruction"},
    {"graph", "teachers", "generators", "inversion"},
    {"quantizers", "ranges", "losses", "images"},
    {"registry", "monitor", "settings", "disk"},
    {"errors", "_version"},
]
# Parts that are split over several files at the top of the package.
ALSO = {
    "kept_states": "run_folder",
    "recipe_text": "recipe",
    "recipe_without_images": "recipe",
    "recipe_with_source": "recipe",
    "recipe_by_bits": "recipe",
}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "base", "misc"}
LONGEST_FILE = 400


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    """`graph` for graph/student.py, `pipeline` for pipeline.py, `` for the package itself."""
    top = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if top == "__init__" else top


def rank(part: str) -> int:
    home = ALSO.get(part, part)
    for index, layer in enumerate(LAYERS):
        if home in layer:
            return index
    raise AssertionError(
        f"src/emptyset/{part} is in no layer. Give it a place in LAYERS of this test."
    )


def imported_modules(path: Path) -> Iterator[str]:
    """Every module of emptyset that the file names in an import, at any depth."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (name for name in names if name.startswith("emptyset."))


def is_module(name: str) -> bool:
    path = PACKAGE.joinpath(*name.split(".")[1:])
    return path.with_suffix(".py").is_file() or path.is_dir()


def registers_a_method(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(
        isinstance(decorator, ast.Call)
        and isinstance(decorator.func, ast.Attribute)
        and decorator.func.attr == "register"
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for decorator in node.decorator_list
    )


def dependencies() -> dict[str, set[str]]:
    """Which parts each part imports, itself excepted."""
    found: dict[str, set[str]] = {}
    for path in sources():
        part = part_of(path)
        if not part:
            continue
        used = {name.split(".")[1] for name in imported_modules(path) if is_module(name)}
        found.setdefault(part, set()).update(used - {part})
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    part = part_of(path)
    if not part:
        return  # The package itself names what is public.
    for name in filter(is_module, imported_modules(path)):
        used = name.split(".")[1]
        assert rank(used) >= rank(part), f"{path.name} imports {name}, which lies above it"


def test_parts_of_one_layer_do_not_form_a_circle() -> None:
    left = dependencies()
    while left:
        free = [part for part, used in left.items() if not used & left.keys()]
        assert free, f"These import each other in a circle: {left}"
        left = {part: used for part, used in left.items() if part not in free}


def test_a_method_never_imports_a_method() -> None:
    methods = {
        ".".join(("emptyset", *path.relative_to(PACKAGE).with_suffix("").parts)): path
        for path in sources()
        if registers_a_method(path)
    }
    for path in methods.values():
        for name in imported_modules(path):
            assert name not in methods, f"{path.name} imports the method {name}"


def test_no_file_has_a_name_that_says_nothing() -> None:
    for path in [*sources(), *(ROOT / "tests").rglob("*.py")]:
        words = set(path.relative_to(ROOT).with_suffix("").parts)
        assert not words & FORBIDDEN_NAMES, path


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_FILE, f"{path.name} has {lines} lines; split it by what it does"
