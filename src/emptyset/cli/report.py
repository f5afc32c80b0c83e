"""`emptyset report RUN`: write the page again from what the run found."""

from pathlib import Path
from typing import Annotated

import typer

from emptyset.cli.options import JsonOption, RunPath


def report(
    run: RunPath,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The page; RUN/report.html by default."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a run's report.html again, for example after an update of emptyset."""
    from emptyset.cli.output import show_json
    from emptyset.disk import disk_errors
    from emptyset.job.restored import rewrite_page
    from emptyset.run_folder import REPORT

    page = out or run / REPORT
    with disk_errors(page.parent):
        rewrite_page(run, page)
    if as_json:
        show_json({"report": str(page)})
    else:
        print(page)
