"""`emptyset methods NAME` and the page: what a docstring says reaches whoever asks, in order."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from emptyset.cli.method_text import (
    CODE,
    ITEM,
    TEXT,
    Part,
    about,
    as_markdown,
    as_yaml,
    parsed,
    settings,
)
from emptyset.registry import ALL, Entry

ENTRIES = [entry for registry in ALL for entry in registry.entries()]
METHODS = [e for e in ENTRIES if e.kind in ("synthesizer", "source", "selector", "refiner")]


@dataclass(frozen=True)
class GreyConfig:
    """Settings of grey images. All ours.

    Attributes:
        level: Brightness, ``a`` | ``b``, told on
            two lines.
        rate: Something small.
        sizes: Two of them.
        path: None unless asked for.
    """

    level: float
    rate: float = 1e-05
    sizes: tuple[int, ...] = (3, 4)
    path: str | None = None


class Grey:
    """Grey images, as an example.

    Paper: Nobody, "Nothing", arXiv:0000.00000; settings of
        the code.
    Idea: all pixels are ``a``, and so is their mean:

            mean = a,      deviation = 0

        which no class has.
    Needs: nothing.
    Differs from source:
        * There is
          no source.
        * None.
    """


GREY = Entry("grey", "synthesizer", GreyConfig, Grey, "Makes grey images.", "nobody")


def test_a_docstring_becomes_a_section_of_the_page() -> None:
    assert (
        as_markdown(GREY)
        == """\
### `grey`

Makes grey images.

**Paper:** Nobody, "Nothing", arXiv:0000.00000; settings of the code.

**Idea:** all pixels are `a`, and so is their mean:

```text
mean = a,      deviation = 0
```

which no class has.

**Needs:** nothing.

**Differs from source:**

* There is no source.
* None.

Settings of grey images. All ours.

| setting | default | meaning |
|---|---|---|
| `level` | `required` | Brightness, `a` \\| `b`, told on two lines. |
| `rate` | `1.0e-05` | Something small. |
| `sizes` | `[3, 4]` | Two of them. |
| `path` | `null` | None unless asked for. |
"""
    )


def test_labels_only_open_paragraphs_of_labelled_text() -> None:
    plain = (
        "Rules of\nThis: a line that goes on\n\n``a`` (default): one\n    two\n``b``, ``c``: three"
    )
    assert parsed(plain) == [
        Part(TEXT, ["Rules of", "This: a line that goes on"]),
        Part(TEXT, ["``a`` (default): one", "two"], "``a`` (default)"),
        Part(TEXT, ["``b``, ``c``: three"], "``b``, ``c``"),
    ]
    table = "Idea: one\nof two\n\n    a:   first\n         more\n\n    prose again\nNot: this"
    assert parsed(table) == [
        Part(TEXT, ["Idea: one", "of two"], "Idea"),
        Part(CODE, ["a:   first", "     more"]),
        Part(TEXT, ["prose again"]),
        Part(TEXT, ["Not: this"], "Not"),
    ]
    items = "Differs:\n    * a\n      b\n    * c: d\nNeeds: e"
    assert [part.kind for part in parsed(items)] == [TEXT, ITEM, ITEM, TEXT]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-05, "1.0e-05"), (2.5e-07, "2.5e-07"), (0.1, "0.1"), (3, "3"), (None, "null"),
        (True, "true"), ("auto", "auto"), ((0.5, 0.9), "[0.5, 0.9]"), ((), "[]"), ("", '""'),
    ],
)  # fmt: skip
def test_a_default_reads_back_from_a_recipe(value: object, text: str) -> None:
    assert as_yaml(value) == text
    back = yaml.safe_load(text)
    assert (tuple(back) if isinstance(back, list) else back) == value


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.kind}-{entry.name}")
def test_every_word_of_a_docstring_is_on_the_page(entry: Entry, command: Any) -> None:
    def words(text: str) -> list[str]:
        for mark in ("``", "`", "**", "* "):
            text = text.replace(mark, "")
        return text.split()

    page = as_markdown(entry)
    told, _, table = page.partition("| setting |")
    assert "``" not in page.replace("```", "")
    for word in words(about(entry)):
        assert word in words(told.replace("```text", "")), word
    for one in settings(entry.config):
        assert one.meaning, f"{entry.name}: no word on {one.name}"
        assert f"| `{one.name}` | `{one.default}` |" in table


@pytest.mark.parametrize("entry", METHODS, ids=lambda entry: entry.name)
def test_every_method_says_where_it_is_from(entry: Entry, command: Any) -> None:
    shown = command("methods", entry.name).stdout
    lines = shown.splitlines()
    assert lines[:2] == [f"{entry.name} ({entry.kind})", entry.sentence]
    assert any(line.startswith(("Paper", "Source")) for line in lines)
    assert max(map(len, lines)) <= 100
    if entry.name != "distill":  # its presets say so one by one
        assert any(line.startswith("Needs: ") for line in lines), entry.name


def test_one_method_is_shown_whole_in_every_form(command: Any) -> None:
    shown = command("methods", "dffg").stdout
    assert "Only the\n    poster could be read." in shown
    assert "  snapshots: 10\n      Harvests per batch.\n" in shown
    (told,) = json.loads(command("methods", "dffg", "--json").stdout)
    assert told["kind"] == "synthesizer"
    assert told["about"].startswith("Paper: Leng et al.")
    assert {"name": "snapshots", "default": "10", "meaning": "Harvests per batch."} in told[
        "settings"
    ]
    section = command("methods", "dffg", "--markdown").stdout
    page = command("methods", "--markdown").stdout
    assert section.startswith("### `dffg`\n")
    assert section in page
    assert "**Reconstructed (ours)" in section


def test_an_unknown_method_is_refused_by_name(command: Any) -> None:
    result = command("methods", "intrak")
    assert result.exit_code == 2
    assert "No method is called 'intrak'. Did you mean 'intraq'?" in result.stderr


def test_a_name_that_is_a_value_of_a_setting_is_found_there(command: Any) -> None:
    result = command("methods", "ait")
    assert result.exit_code == 2
    assert "'ait'. It is a value of `preset` of the refiner `distill`: `emptyset" in result.stderr
