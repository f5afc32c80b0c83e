"""`emptyset methods`: every method, one line each."""

import dataclasses
import inspect
import sys
from typing import Annotated, Any

import typer

from emptyset.cli.options import JsonOption

_PAGE_HEAD = """\
# Methods

Written by `emptyset methods --markdown > docs/methods.md`; a test keeps it current. Settings are
written beside `method:` in a recipe, or as `--set synthesize.steps=200` on the command line.
"""


def methods(
    as_json: JsonOption = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="The whole page docs/methods.md, with settings.")
    ] = False,
) -> None:
    """List every method: name, kind, one sentence."""
    from emptyset.cli.output import show_json
    from emptyset.registry import ALL

    entries = [entry for registry in ALL for entry in registry.entries()]
    if as_json:
        show_json(
            [
                {"name": e.name, "kind": e.kind, "sentence": e.sentence, "source": e.source}
                for e in entries
            ]
        )
    elif markdown:
        sys.stdout.write(_page(entries))
    else:
        # Plain lines, never cut: they are read by people and by grep.
        names = max(len(entry.name) for entry in entries)
        kinds = max(len(entry.kind) for entry in entries)
        for entry in entries:
            sys.stdout.write(f"{entry.name:<{names}}  {entry.kind:<{kinds}}  {entry.sentence}\n")


def _page(entries: list[Any]) -> str:
    lines = [_PAGE_HEAD]
    for kind in dict.fromkeys(entry.kind for entry in entries):
        lines.append(f"## {kind.capitalize()}s\n")
        for entry in (one for one in entries if one.kind == kind):
            lines.append(f"### `{entry.name}`\n\n{entry.sentence}\n\nSource: {entry.source}\n")
            lines += _settings(entry.config)
    return "\n".join(lines).rstrip() + "\n"


def _settings(config: type[Any]) -> list[str]:
    fields = dataclasses.fields(config)
    if not fields:
        return ["No settings.\n"]
    meanings: dict[str, str] = {}
    for kind in reversed(config.__mro__):  # what is shared is told where it is shared
        meanings |= _attributes(inspect.cleandoc(kind.__doc__ or ""))
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for field in fields:
        default = "required" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
        meaning = meanings.get(field.name, "").replace("|", "\\|")
        rows.append(f"| `{field.name}` | {default} | {meaning} |")
    return ["\n".join(rows) + "\n"]


def _attributes(docstring: str) -> dict[str, str]:
    """What the ``Attributes:`` section of a docstring says of each name."""
    found: dict[str, str] = {}
    name, inside = "", False
    for line in docstring.splitlines():
        text = line.strip()
        if text == "Attributes:":
            inside = True
        elif inside and line.startswith("    ") and not line.startswith("     "):
            name, _, meaning = text.partition(": ")
            found[name] = meaning
        elif inside and text and name:
            found[name] += f" {text}"
    return found
