"""`emptyset methods`: every method, one line each."""

import sys

from emptyset.cli.options import JsonOption


def methods(as_json: JsonOption = False) -> None:
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
        return
    # Plain lines, never cut: they are read by people and by grep.
    names = max(len(entry.name) for entry in entries)
    kinds = max(len(entry.kind) for entry in entries)
    for entry in entries:
        sys.stdout.write(f"{entry.name:<{names}}  {entry.kind:<{kinds}}  {entry.sentence}\n")
