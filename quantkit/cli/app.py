"""The `quantkit` command: the commands gathered, and errors turned into one sentence and exit code 2."""

from __future__ import annotations

import errno
import json
import os
import sys
from typing import Annotated, NoReturn

import typer

from quantkit import __version__
from quantkit.cli import (
    audit,
    bench,
    build,
    calibrate,
    compare,
    doctor,
    evaluate,
    export,
    migrate,
    plugins,
    profile,
    repeat,
    report,
    run,
    sensitivity,
    table,
    tune,
    verify,
)
from quantkit.errors import QuantkitError

PROGRAM = "quantkit"
INTERRUPTED = 130
"""Exit code after Ctrl-C."""


app = typer.Typer(
    name=PROGRAM,
    help="INT8 calibration and quantization of BERT-class models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(wanted: bool) -> None:
    """Prints the version and ends, when asked for it."""
    if wanted:
        typer.echo(f"quantkit {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """INT8 calibration and quantization of BERT-class models."""


for name, command in (
    ("run", run.run),
    ("calibrate", calibrate.calibrate),
    ("build", build.build),
    ("eval", evaluate.evaluate),
    ("bench", bench.bench),
    ("sensitivity", sensitivity.sensitivity),
    ("tune", tune.tune),
    ("verify", verify.verify),
    ("migrate", migrate.migrate),
    ("export", export.export),
    ("audit", audit.audit),
    ("compare", compare.compare),
    ("report", report.report),
    ("repeat", repeat.repeat),
    ("profile", profile.profile),
    ("doctor", doctor.doctor),
):
    app.command(name)(command)
app.add_typer(table.app)
app.add_typer(plugins.app, name="plugins")


def main() -> None:
    """Runs the command line; what the user can mend is one sentence on standard error and exit code 2."""
    # Fork-safety chatter of the tokenizers, and progress bars of libraries, are not ours to show.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        app(prog_name=PROGRAM)  # also where it runs as `python -m quantkit`: completion goes by this name
    except QuantkitError as error:
        fail(error.message, error.hint)
    except KeyboardInterrupt:
        interrupted()
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # typer ends so on Ctrl-C, without a word
            interrupted()
        raise
    except MemoryError:
        fail("There is not enough memory.", "Use a smaller --batch or --seq-len.")
    except BrokenPipeError:
        os._exit(0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            if interruption(error):
                interrupted()
            raise
        where = f" ({error.filename})" if error.filename else ""
        fail(f"{error.strerror}{where}.", "Free some space, or choose another folder with --out or QUANTKIT_CACHE.")
    except Exception as error:
        if interruption(error):
            interrupted()
        raise


def interruption(error: BaseException | None) -> bool:
    """Whether an error is Ctrl-C, or what a library made of it on the way out."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def interrupted() -> NoReturn:
    """Says what an interruption leaves behind."""
    fail("Interrupted.", "The same command goes on with what is already finished.", code=INTERRUPTED)


def fail(message: str, hint: str = "", code: int = 2) -> NoReturn:
    """Prints the sentence and the next step, as JSON when --json was asked for, and ends the process."""
    if "--json" in sys.argv:
        typer.echo(json.dumps({"error": message, "hint": hint}))
    typer.echo(f"quantkit: {message}" + (f"\n  {hint}" if hint else ""), err=True)
    sys.exit(code)
