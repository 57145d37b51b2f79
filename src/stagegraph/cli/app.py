"""All commands together, their exit codes, and errors without tracebacks."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from .export import export
from .graphs import draw, prompts_app
from .run import resume, run
from .runs import diff, feedback, runs, show
from .serve import serve
from .text import print_error
from .tune import compare, evaluate, tune

INTERRUPTED = 130

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
for command in (run, serve, resume, runs, show, diff, feedback, export, draw):
    app.command()(command)
app.command("eval")(evaluate)
app.command()(compare)
app.command()(tune)
app.add_typer(prompts_app, name="prompts", help="Look at prompts, compare them, check them.")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("stagegraph"))
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Run graphs of LLM agents, and look at what they did."""


def main() -> None:
    """Run the command line and exit the process."""
    from stagegraph.schema.errors import StagegraphError

    try:
        app()
    except StagegraphError as error:
        print_error(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of the output is gone, as `head` is: end quietly, and keep Python from flushing into the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.filename is None:
            raise
        print_error(f"{error.filename}: {error.strerror}; check the path and who may read or write it")
        sys.exit(1)
