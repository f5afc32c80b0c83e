"""`emptyset export RUN --out FILE`: write a run's file again, proved."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from emptyset.cli.options import JsonOption, QuietOption, RunPath


def export(
    run: RunPath,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The ONNX file to write.")],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write the ONNX file of a run's student, and prove it on the run's images."""
    from emptyset import pipeline
    from emptyset.cli.output import show_json
    from emptyset.cli.progress import shown_progress
    from emptyset.disk import disk_errors
    from emptyset.errors import CertificateError
    from emptyset.job.metrics import file_facts
    from emptyset.job.restored import restore
    from emptyset.report.facts import size

    restored = restore(run)
    aside = out.with_name(f".{os.getpid()}.{out.name}")
    try:
        with disk_errors(out.parent), shown_progress(quiet=quiet) as monitor:
            out.parent.mkdir(parents=True, exist_ok=True)
            artefact = pipeline.export(
                restored.student,
                aside,
                metadata={"recipe_hash": restored.recipe.hash()},
            )
            shown = restored.fitted_images(None)
            certificate = pipeline.certify(
                aside,
                restored.student,
                shown,
                simulation=artefact.simulation,
                monitor=monitor,
            )
            if not certificate.holds:
                raise CertificateError(
                    f"{out}: was not written, because the file does not compute what was "
                    f"simulated: {certificate.fault}"
                )
            aside.replace(out)
    finally:
        with suppress(OSError):  # never made, below a file
            aside.unlink(missing_ok=True)
    if as_json:
        facts = file_facts(artefact)
        show_json({"path": str(out), "file": facts, "certificate": certificate.to_json()})
    else:
        print(f"{out}: {size(artefact.size_bytes)}. {certificate.summary()}")
