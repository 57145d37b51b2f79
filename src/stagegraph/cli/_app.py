"""The commands put together, and how they end: exit codes, and errors without tracebacks."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer
from rich.text import Text

from ._eval import compare, evaluate
from ._export import export
from ._graphs import draw, prompts_app
from ._resume import resume
from ._run import run
from ._runs import diff, feedback, runs
from ._serve import serve
from ._show import show
from ._text import console, plain
from ._tune import tune

__all__ = ["main"]

INTERRUPTED = 130

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
for command in (run, serve, resume, runs, show, diff, feedback, export, draw):
    app.command()(command)
app.command("eval")(evaluate)
app.command()(compare)
app.command()(tune)
app.add_typer(prompts_app, name="prompts", help="Look at prompts, compare them, check them.")


def _say_version(wanted: bool) -> None:
    if wanted:
        print(version("stagegraph"))  # noqa: T201
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Run graphs of LLM agents, and look at what they did."""


def main() -> None:
    """Run the command line and exit the process."""
    from stagegraph.schema.errors import StagegraphError  # noqa: PLC0415 - `--help` answers without loading the library

    try:
        app()
    except StagegraphError as error:
        console(stderr=True).print(Text.assemble(("error: ", "bold red"), plain(str(error))))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output went away, as `head` does: end quietly, and keep Python from flushing into it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.filename is None:
            raise
        place = f"{error.filename}: {error.strerror}; check the path and who may read or write it"
        console(stderr=True).print(Text.assemble(("error: ", "bold red"), plain(place)))
        sys.exit(1)
