"""The program `emptyset`: its commands, and how errors leave it.

Exit codes: 0 done · 1 a defect of ours · 2 wrong input, option, recipe or network · 3 the file does
not compute what was simulated · 4 below `--min-agreement` · 5 the output folder cannot be used ·
130 interrupted.
"""

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from emptyset._version import __version__
from emptyset.cli import (
    check,
    compare,
    evaluate,
    export,
    methods,
    quantize,
    report,
    run,
    select,
    synthesize,
    teachers,
)
from emptyset.cli.computing import Computing
from emptyset.cli.freed_memory import keep_freed_memory
from emptyset.cli.output import say
from emptyset.cli.quiet import quieten_imports
from emptyset.cli.waiting_threads import wait_briefly
from emptyset.errors import EmptysetError

INTERRUPTED = 130
OUR_DEFECT = 1
# Commands that keep what they have on the way.
RESUMED = {"quantize", "run", "compare", "synthesize"}


class Commands(TyperGroup):
    """Commands whose deliberate errors become one message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        quieten_imports()
        try:
            return super().invoke(ctx)
        except EmptysetError as error:
            say(f"Error: {error}")
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            goes_on = ctx.invoked_subcommand in RESUMED
            say("Interrupted." + " The same command goes on where it stopped." * goes_on)
            raise typer.Exit(INTERRUPTED) from error
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if _is_usage_error(error) or isinstance(error, BrokenPipeError):
                raise
            import traceback

            traceback.print_exc()
            say(
                f"This is a defect of emptyset {__version__}, not of your input. Please report "
                "the lines above and the command."
            )
            raise typer.Exit(OUR_DEFECT) from error


def _is_usage_error(error: Exception) -> bool:
    # Typer carries its own copy of click; both kinds know how to show themselves.
    return hasattr(error, "exit_code") and hasattr(error, "show")


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Quantize a trained vision network from an empty dataset.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"emptyset {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


app.command("quantize", cls=Computing)(quantize.quantize)
app.command("run", cls=Computing)(run.run)
app.command("synthesize", cls=Computing)(synthesize.synthesize)
app.command("select", cls=Computing)(select.select)
app.command("compare", cls=Computing)(compare.compare)
app.command("evaluate", cls=Computing)(evaluate.evaluate)
app.command("export", cls=Computing)(export.export)
app.command("check", cls=Computing)(check.check)
app.command("report")(report.report)
app.command("methods")(methods.methods)
app.command("teachers")(teachers.teachers)


def main() -> None:
    """Entry point of the program."""
    wait_briefly()
    keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):
        # Tables and bars hold × and −; a terminal without UTF-8 shows `?` instead of failing.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    app(prog_name="emptyset")


if __name__ == "__main__":
    main()
