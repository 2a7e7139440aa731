"""`t2i`'s headless verbs: where they are put together, and how each ends.

`main` parses and validates before anything heavy is imported, so that bad input is answered at once. Exit codes:
0 done, 1 failed (the machine's fault), 2 bad input, 130 cancelled (Ctrl+C), 141 the reader of stdout went away.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

import typer

from engine.cli.console import (
    CANCELLED,
    DISK_FULL,
    DONE,
    FAILED,
    UNREAD,
    OutputError,
    abandon_output,
    complain,
    refuse,
    say,
    write,
)
from engine.cli.generate import generate
from engine.cli.models import models_app
from engine.cli.plan import plan
from engine.cli.presets import list_presets
from engine.request import RequestError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.command()(generate)
app.command()(plan)
app.command("presets")(list_presets)
app.add_typer(models_app, name="models")
VERBS = ("generate", "plan", "presets", "models", "doctor")


def main(argv: Sequence[str] | None = None, prog: str = "t2i") -> int:
    """Run the verb in `argv` (default: the process's own arguments) and return its exit code. Never raises."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that cannot show a letter gets its number
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            # The command functions only look at their arguments; what they return does the work, out of Typer's reach.
            result = app(arguments, prog_name=prog, standalone_mode=False)
            code: int = result() if callable(result) else int(result or DONE)
            if code == CANCELLED:
                say("cancelled.")
        except typer.TyperException as error:
            field = getattr(getattr(error, "param", None), "name", None) or "arguments"
            verb = f" {arguments[0]}" if arguments and arguments[0] in VERBS else ""
            message = error.format_message()
            stop = "" if message.endswith((".", "?")) else "."
            code = complain(field, f"{message}{stop} See {prog}{verb} --help.", as_json=as_json)
        except RequestError as error:
            code = refuse(error, as_json=as_json)
        except KeyboardInterrupt:
            say("cancelled.")
            code = CANCELLED
        except (BrokenPipeError, OutputError):
            raise
        except OSError as error:
            if error.errno in DISK_FULL and error.filename is None:  # Typer's help
                raise OutputError(f"standard output cannot be written to ({_reason(error)}).") from None
            code = complain(None, _unexpected(error), as_json=as_json, code=FAILED)
        except Exception as error:
            code = complain(None, _unexpected(error), as_json=as_json, code=FAILED)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        abandon_output()
        code = UNREAD
    except (OutputError, OSError) as error:  # a full disk behind a redirection
        abandon_output()
        said = error if isinstance(error, OutputError) else f"standard output cannot be written to ({_reason(error)})."
        say(f"error: {said}")
        code = FAILED
    return code


def _reason(error: OSError) -> str:
    return (error.strerror or "unknown reason").lower()


def _show_version(wanted: bool) -> None:
    if wanted:
        from engine import __version__

        write(f"TextToImageTool {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
) -> None:
    """TextToImageTool: pictures from text."""


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="All facts as one JSON object on stdout.")] = False,
) -> Callable[[], int]:
    """Look at this machine: Python, torch, graphics card, driver, memory, disk, terminal; say what to do."""
    from engine.cli.doctor import run

    return partial(run, as_json=as_json)


def _unexpected(error: Exception) -> str:
    """One sentence for an error that nobody foresaw; the traceback goes to a file in the state folder."""
    from engine.errors_log import keep_traceback, memory_shortage

    log = keep_traceback(error)
    message = memory_shortage(error) or f"something unexpected went wrong ({type(error).__name__}: {error})"
    return f"{message}; the details could not be saved." if log is None else f"{message}; see {log}."
