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
    from emptyset.run_folder import MODEL, REJECTED

    restored = restore(run)
    # What failed its certificate in the run can be looked at again.
    path = run / REJECTED
    if (run / MODEL).exists() or not path.exists():
        path = restored.file(MODEL)
    shown = restored.fitted_images(images)
    with shown_progress(quiet=quiet) as monitor:
        certificate = pipeline.certify(
            path,
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
            f"{path}: does not compute what {run / 'student.safetensors'} simulates: "
            f"{certificate.fault}. Do not use the file; write it again with `emptyset export "
            f"{run}`."
        )
