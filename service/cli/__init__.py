"""The command `jobservice`: starts the service, and talks to a running one as any other client does.

Exit codes: 0 the job is SUCCESS or the command did its work, 1 the job is FAILED or CANCELLED or the service could not
start, 2 the command or its input is wrong, 3 no service answers, 130 interrupted, 141 nobody reads its output. What was
asked for goes to stdout, everything else to stderr.
"""

import signal
import sys
from typing import NoReturn

from service.cli.loading import uncollected
from service.cli.streams import open_missing

__all__ = ["main"]


def main() -> NoReturn:
    """Load the command line, run it and exit with its code."""
    open_missing()
    try:
        with uncollected():
            from service.cli import app
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    app.main()
