"""The command tree, and how a command line ends."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import pydantic
from cyclopts import App, CycloptsError

from service import __version__
from service.cli import arguments
from service.cli.config import config
from service.cli.failures import Exit, UsageError, tell
from service.cli.jobs import cancel, jobs, result, retry, show
from service.cli.keys import keys, tenants
from service.cli.output import Terminal, say
from service.cli.plugins import plugins
from service.cli.reports import report
from service.cli.schedules import schedules
from service.cli.serving import migrate, serve, snapshot, work
from service.cli.submitting import submit
from service.cli.watching import watch
from service.client import ApiError, ServiceUnreachableError
from service.errors import ServiceError

app = App(
    name="jobservice",
    version=__version__,
    help="Runs plugins as durable jobs behind an HTTP API.",
    help_epilogue=(
        "Every setting is an option, an environment variable JOBSERVICE_NAME, or a line of .env: "
        "`jobservice config` shows them.\n"
        "Exit codes: 0 done, 1 the job FAILED or was CANCELLED, 2 wrong usage or input, 3 no service answers."
    ),
    help_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
    exit_on_error=False,
    print_error=False,
    console=Terminal(),
    config=(arguments.check,),
)

for command in (
    *(serve, work, migrate, snapshot),
    *(submit, jobs, show, result, watch, cancel, retry, schedules, plugins, report),
    *(config, keys, tenants),
):
    app.command(command)


def main() -> NoReturn:
    """Run the command line of this process and exit with its code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal without the character of a text is told which one it is.
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


def run(given: Sequence[str]) -> int:
    """The exit code of a command line; every failure is told in a line or two on stderr."""
    try:
        return _run(given)
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.BROKEN_PIPE


def _run(given: Sequence[str]) -> int:
    try:
        code = app(given)
        sys.stdout.flush()
    except BrokenPipeError:
        raise  # an OSError, but no failure to tell: nobody reads
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except (
        CycloptsError,
        UsageError,
        ApiError,
        ServiceUnreachableError,
        ServiceError,
        OSError,
        pydantic.ValidationError,
    ) as error:
        return tell(error, as_json="--json" in given)
    except Exception as error:
        # A person at a terminal is told what happened, not where in our code.
        if os.environ.get("JOBSERVICE_LOG_LEVEL", "").lower() == "debug":
            raise
        say(f"jobservice: Unexpected {type(error).__name__}: {error}", style="red")
        say("This is a fault of jobservice itself; JOBSERVICE_LOG_LEVEL=debug shows where.")
        return Exit.FAILED
    return Exit.OK if code is None else int(code)
