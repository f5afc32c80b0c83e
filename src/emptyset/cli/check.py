"""`emptyset check RUN`: prove again that the file computes what was simulated."""

from typing import Annotated

import typer

from emptyset.cli.options import ImagesOption, JsonOption, QuietOption, RunPath


def check(
    run: RunPath,
    images: ImagesOption = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", min=2, help="At most this many images."),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Repeat a run's certificate, on its own images or on others."""
    from emptyset import pipeline
    from emptyset.cli.output import show_json
    from emptyset.cli.progress import shown_progress
    from emptyset.errors import CertificateError
    from emptyset.job.restored import restore
    from emptyset.run_folder import MODEL

    restored = restore(run)
    shown = restored.fitted_images(images)
    with shown_progress(quiet=quiet) as monitor:
        certificate = pipeline.certify(
            restored.file(MODEL),
            restored.student,
            shown,
            limit=limit,
            image_source=str(images or "the run's own images"),
            monitor=monitor,
        )
    if as_json:
        show_json(certificate.to_json())
    else:
        print(certificate.summary())
    if not certificate.holds:
        raise CertificateError(
            f"{run / MODEL}: does not compute what {run / 'student.safetensors'} simulates: "
            f"{certificate.fault} Do not use the file; write it again with `emptyset export {run}`."
        )
