"""The command `jobservice`: starts the service, and talks to a running one as any other client does.

Exit codes: 0 the job is SUCCESS or the command did its work, 1 the job is FAILED or CANCELLED or the service could not
start, 2 the command or its input is wrong, 3 no service answers, 130 interrupted. What was asked for goes to stdout,
everything else to stderr.
"""

from service.cli.loading import uncollected

with uncollected():
    from service.cli.app import main

__all__ = ["main"]
