"""What a method says of itself: its docstring's text and its settings, for page and screen."""

import dataclasses
import inspect
import re
import sys
import textwrap
from typing import Any

from emptyset.registry import Entry

# A class that says this is described by its file.
_SEE_MODULE = "See the module docstring"
# `Needs: …`, or ``preset`` (default): …
_LABEL = re.compile(r"((?:``|[A-Z])[^:]{0,60}):(?: |$)")
_TOLD_IN_TEXT = ("Paper", "Papers", "Source", "Sources")
_COLUMNS = 100
TEXT, ITEM, CODE = "text", "item", "code"


@dataclasses.dataclass
class Part:
    """A piece of a docstring.

    Attributes:
        kind: ``text``, one ``item`` of a list, or ``code``, whose lines stay as they are.
        lines: Without the indentation that they share.
        label: What stands before the first colon of a text, if that is a label.
    """

    kind: str
    lines: list[str]
    label: str = ""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting of a method.

    Attributes:
        name: As in a recipe.
        default: As in a recipe; ``required`` where there is none.
        meaning: From the docstring, on one line.
    """

    name: str
    default: str
    meaning: str


def about(entry: Entry) -> str:
    """The docstring of the method's class, or of its file, without the opening sentence.

    Where that sentence is all there is, it is kept.
    """
    text = inspect.getdoc(entry.make) or ""
    if not text or text.startswith(_SEE_MODULE):
        text = inspect.cleandoc(sys.modules[entry.make.__module__].__doc__ or "")
    _, _, rest = text.partition("\n\n")
    return rest or text


def settings(config: type[Any]) -> list[Setting]:
    """Every setting of a config dataclass, in order."""
    meanings: dict[str, str] = {}
    for kind in reversed(config.__mro__):  # what is shared is told where it is shared
        meanings |= _attributes(inspect.cleandoc(kind.__doc__ or ""))
    return [
        Setting(
            field.name,
            "required" if field.default is dataclasses.MISSING else as_yaml(field.default),
            meanings.get(field.name, ""),
        )
        for field in dataclasses.fields(config)
    ]


def introduction(config: type[Any]) -> str:
    """What a config's docstring says before its attributes, on one line."""
    text, _, _ = (config.__doc__ or "").partition("Attributes:")
    # A dataclass without a docstring gets its signature as one.
    return "" if text.startswith(f"{config.__name__}(") else " ".join(text.split())


def as_yaml(value: Any) -> str:
    """A default as one would write it in a recipe."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(as_yaml(one) for one in value)}]"
    text = str(value)
    if isinstance(value, float) and "e" in text and "." not in text:
        text = text.replace("e", ".0e")  # YAML reads 1e-05 as text
    return text or '""'


def as_markdown(entry: Entry) -> str:
    """The section of one method on the page docs/methods.md."""
    parts = parsed(about(entry))
    lines = [f"### `{entry.name}`", "", entry.sentence, ""]
    if not any(part.label in _TOLD_IN_TEXT for part in parts):
        lines += [f"**Source:** {entry.source}", ""]
    for number, part in enumerate(parts):
        if part.kind == CODE:
            lines += ["```text", *map(_plain, part.lines), "```", ""]
            continue
        text = _plain(" ".join(part.lines))
        if part.label:
            text = f"**{_plain(part.label)}:**{text[len(_plain(part.label)) + 1 :]}"
        listed = part.kind == ITEM
        lines.append(f"* {text}" if listed else text)
        if not (listed and number + 1 < len(parts) and parts[number + 1].kind == ITEM):
            lines.append("")
    found = settings(entry.config)
    if not found:
        return "\n".join([*lines, "No settings.", ""])
    lines += [_plain(introduction(entry.config)), ""]
    lines += ["| setting | default | meaning |", "|---|---|---|"]
    for one in found:
        meaning = _plain(one.meaning).replace("|", "\\|")
        lines.append(f"| `{one.name}` | `{one.default}` | {meaning} |")
    return "\n".join([*lines, ""])


def as_plain_text(entry: Entry) -> str:
    """The same for a terminal."""
    text = about(entry)
    lines = [f"{entry.name} ({entry.kind})", entry.sentence, ""]
    if not any(part.label in _TOLD_IN_TEXT for part in parsed(text)):
        source = f"Source: {entry.source}"
        lines += [*textwrap.wrap(source, _COLUMNS, subsequent_indent=" " * 4), ""]
    lines += [*_plain(text).splitlines(), ""]
    found = settings(entry.config)
    heading = _plain(introduction(entry.config)) if found else "No settings."
    lines += textwrap.wrap(heading or "Settings.", _COLUMNS)
    for one in found:
        lines.append(f"  {one.name}: {one.default}")
        lines += textwrap.wrap(
            _plain(one.meaning), _COLUMNS, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
    return "\n".join(lines) + "\n"


def parsed(text: str) -> list[Part]:
    """A docstring's paragraphs, list items and formulas, in order.

    A paragraph begins behind an empty line, or with a label behind another labelled one; its
    further lines may be indented. Items begin with an indented ``*``. What is indented behind an
    empty line is a formula or a small table if it is indented by 8, or if its lines have columns.
    """
    parts: list[Part] = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        lines = block.splitlines()
        indents = [len(line) - len(line.lstrip()) for line in lines]
        columns = any(re.search(r"\S {3,}\S", line) for line in lines)
        if min(indents) >= 8 or (min(indents) >= 4 and columns):
            parts.append(Part(CODE, textwrap.dedent(block).splitlines()))
            continue
        # Text without a label that is not indented goes on, whatever its lines begin with.
        goes_on = indents[0] == 0 and not _LABEL.match(lines[0])
        for number, (line, indent) in enumerate(zip(lines, indents, strict=True)):
            words, label = line.strip(), _LABEL.match(line)
            if indent == 4 and words.startswith("* "):
                parts.append(Part(ITEM, [words[2:]]))
            elif number == 0 or (label and not goes_on):
                parts.append(Part(TEXT, [words], label[1] if label else ""))
            else:
                parts[-1].lines.append(words)
    return parts


def _plain(text: str) -> str:
    """Code between single backticks, as Markdown and people write it."""
    return text.replace("``", "`")


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
