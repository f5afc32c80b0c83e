"""Methods by name: dictionaries that refuse duplicates and explain misses.

A method is a class with a frozen config dataclass. Its file registers it; the folder's
``__init__`` imports every file in the folder, so that a broken file fails loudly. Packages of
others add methods through the entry-point group ``emptyset.methods``: each entry point names a
module whose import registers them.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, TypeVar

from emptyset.errors import UnknownNameError

Made = TypeVar("Made")

ENTRY_POINT_GROUP = "emptyset.methods"


@dataclass(frozen=True)
class Entry:
    """One registered method.

    Attributes:
        name: The name used in recipes and on the command line.
        kind: The registry it belongs to, for example ``synthesizer``.
        config: Frozen dataclass of its settings.
        make: Called with one config; gives the method.
        sentence: What it does, one sentence.
        source: Where it was published, or "ours".
    """

    name: str
    kind: str
    config: type[Any]
    make: Callable[[Any], Any]
    sentence: str
    source: str


class Registry:
    """All methods of one kind."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._entries: dict[str, Entry] = {}

    def register(
        self, name: str, config: type[Any], *, sentence: str, source: str
    ) -> Callable[[type[Made]], type[Made]]:
        """Class decorator: make the class known as ``name``.

        Raises:
            ValueError: If the name is taken.
        """

        def add(make: type[Made]) -> type[Made]:
            if name in self._entries:
                owner = self._entries[name].make.__module__
                raise ValueError(f"{self.kind} '{name}' is already taken by {owner}.")
            self._entries[name] = Entry(name, self.kind, config, make, sentence, source)
            return make

        return add

    def get(self, name: str) -> Entry:
        """The entry called ``name``.

        Raises:
            UnknownNameError: If there is none; the message names the nearest, or where a method of
                another kind belongs.
        """
        self._discover()
        if name in self._entries:
            return self._entries[name]
        raise UnknownNameError(
            f"No {self.kind} is called '{name}'.{_elsewhere(name) or nearest(name, self.names())} "
            f"Known: {', '.join(self.names())}."
        )

    def names(self) -> list[str]:
        """Every registered name, sorted."""
        self._discover()
        return sorted(self._entries)

    def entries(self) -> list[Entry]:
        """Every entry, sorted by name."""
        return [self._entries[name] for name in self.names()]

    def _discover(self) -> None:
        importlib.import_module(self._package)
        load_plugins()


def nearest(name: str, known: list[str]) -> str:
    """`` Did you mean 'x'?`` with a leading space, or an empty string."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def _elsewhere(name: str) -> str:
    """Where a method that is of another kind belongs, with a leading space, or an empty string."""
    for kind, place in _PLACES.items():
        if name in kind.names():
            return f" '{name}' is a {kind.kind}: {place.format(name=name)}"
    return ""


def import_folder(package: str, path: list[str]) -> None:
    """Import every module of a package, so that its methods register themselves."""
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")


_plugins_loaded = False


def load_plugins() -> None:
    """Import the modules that other packages name under ``emptyset.methods``, once."""
    global _plugins_loaded
    if _plugins_loaded:
        return
    _plugins_loaded = True
    for point in entry_points(group=ENTRY_POINT_GROUP):
        point.load()


synthesizers = Registry("synthesizer", "emptyset.synthesizers")
sources = Registry("source", "emptyset.sources")
selectors = Registry("selector", "emptyset.selectors")
refiners = Registry("refiner", "emptyset.refiners")
ranges = Registry("range", "emptyset.ranges")
plans = Registry("plan", "emptyset.graph")

ALL = (synthesizers, sources, selectors, refiners, ranges, plans)

# What a method of another kind is, and where it belongs.
_PLACES = {
    sources: "a generator that is trained beside the student. In a recipe, write "
    "`source: {{method: {name}}}` in place of `synthesize`, and run it: `emptyset run RECIPE`.",
    synthesizers: "it makes images before there is a student. In a recipe, write "
    "`synthesize: {{method: {name}}}`, or give --images {name}.",
}
