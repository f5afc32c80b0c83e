"""`emptyset methods`: every method on one line, or all about one."""

import dataclasses
import sys
from typing import Annotated, Any

import typer

from emptyset.cli.options import JsonOption

_PAGE_HEAD = """\
# Methods

Written by `emptyset methods --markdown > docs/methods.md`; a test keeps it current. Settings are
written beside `method:` in a recipe, or as `--set synthesize.steps=200` on the command line.
`emptyset methods NAME` shows one method.
"""


def methods(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="All about this one.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="As Markdown, with texts and settings.")
    ] = False,
) -> None:
    """List every method: name, kind, one sentence. With NAME: source, text and settings."""
    from emptyset.cli.method_text import as_plain_text
    from emptyset.cli.output import show_json
    from emptyset.registry import ALL

    entries = [entry for registry in ALL for entry in registry.entries()]
    if name is not None:
        entries = _called(name, entries)
    if as_json:
        show_json([_data(entry, whole=name is not None) for entry in entries])
    elif markdown:
        sys.stdout.write(_page(entries, head=name is None))
    elif name is not None:
        sys.stdout.write("\n".join(map(as_plain_text, entries)))
    else:
        # Plain lines, never cut: they are read by people and by grep.
        names = max(len(entry.name) for entry in entries)
        kinds = max(len(entry.kind) for entry in entries)
        for entry in entries:
            sys.stdout.write(f"{entry.name:<{names}}  {entry.kind:<{kinds}}  {entry.sentence}\n")


def _called(name: str, entries: list[Any]) -> list[Any]:
    """The methods of that name; methods of two kinds may share one."""
    from emptyset.errors import UnknownNameError
    from emptyset.registry import nearest

    found = [entry for entry in entries if entry.name == name]
    if not found:
        known = [entry.name for entry in entries]
        hint = _as_a_setting(name, entries) or nearest(name, known)
        raise UnknownNameError(f"No method is called '{name}'.{hint} `emptyset methods` lists all.")
    return found


def _as_a_setting(name: str, entries: list[Any]) -> str:
    """Where the name is a value of a method's setting, as AIT is: which, else nothing."""
    from emptyset.cli.method_text import settings

    for entry in entries:
        for one in settings(entry.config):
            if f"``{name}``" in one.meaning:
                return (
                    f" It is a value of `{one.name}` of the {entry.kind} `{entry.name}`: "
                    f"`emptyset methods {entry.name}` tells more."
                )
    return ""


def _data(entry: Any, *, whole: bool) -> dict[str, Any]:
    from emptyset.cli.method_text import about, settings

    told = {name: getattr(entry, name) for name in ("name", "kind", "sentence", "source")}
    if whole:
        told["about"] = about(entry)
        told["settings"] = [dataclasses.asdict(one) for one in settings(entry.config)]
    return told


def _page(entries: list[Any], *, head: bool) -> str:
    from emptyset.cli.method_text import as_markdown

    lines = [_PAGE_HEAD] if head else []
    for kind in dict.fromkeys(entry.kind for entry in entries):
        if head:
            lines.append(f"## {kind.capitalize()}s\n")
        lines += [as_markdown(entry) for entry in entries if entry.kind == kind]
    return "\n".join(lines).rstrip() + "\n"
