"""`emptyset teachers`: every source of teachers, one line each."""

import sys

from emptyset.cli.options import JsonOption


def teachers(as_json: JsonOption = False) -> None:
    """List where teachers come from, and the ones that ship with emptyset."""
    from emptyset.cli.output import show_json
    from emptyset.teachers import teacher_sources
    from emptyset.teachers.embedded import embedded_names

    sources = teacher_sources()
    embedded = [f"embedded:{name}" for name in embedded_names()]
    if as_json:
        listed = [{"prefix": f"{prefix}:", "sentence": text} for prefix, text in sources]
        show_json({"sources": listed, "embedded": embedded})
        return
    width = max(len(prefix) for prefix, _ in sources) + 1
    for prefix, sentence in sources:
        sys.stdout.write(f"{prefix + ':':<{width}}  {sentence}\n")
    sys.stdout.write(f"Ready to use: {', '.join(embedded)}\n")
