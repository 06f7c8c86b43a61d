"""The keeper of one worker: its parent, which ends whatever the worker leaves behind. Imports little, to stay small."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from contextlib import suppress
from typing import Final

from service.tool_runner import processes

#: How long it tries to end what does not end.
PATIENCE_S: Final = 2.0

_AWAITED: Final = (signal.SIGCHLD, signal.SIGTERM)


def main() -> None:
    """Fork the worker, and when it has ended, end all that it started, then end as it did.

    SIGTERM ends the worker, and so does the death of the service.

    The kernel gives every orphan to the nearest subreaper above it, so nothing below the keeper leaves it by a session,
    an environment or a name of its own, and when the keeper has no child left there is nothing left.

    What remains: a plugin has the rights of the service. If it kills its keeper, what it started is found by the marker
    in its environment alone; and what it has others start (a daemon, a timer of the system) is nobody's here.
    """
    descriptor, parent = map(int, sys.argv[1:])
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    processes.join_family(parent, signal.SIGTERM)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    keeper = os.getpid()
    worker = os.fork()
    if worker == 0:
        os.setsid()  # a signal to the worker's group is none to its keeper
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _AWAITED)
        from service.tool_runner.worker import main as work  # the keeper has no use for it

        work(descriptor, keeper)
    os.close(descriptor)
    status = _end_of(worker)
    ends = time.monotonic() + PATIENCE_S
    while _has_children() and time.monotonic() < ends:
        processes.kill_below(keeper)
    _end_as(os.waitstatus_to_exitcode(status))


def _end_of(worker: int) -> int:
    """The status with which the worker ended."""
    while signal.sigwait(_AWAITED) == signal.SIGCHLD:
        dead, status = os.waitpid(worker, os.WNOHANG)
        if dead:
            return status
    os.kill(worker, signal.SIGKILL)
    return os.waitpid(worker, 0)[1]


def _has_children() -> bool:
    """Whether there are any, adopted ones too; its zombies are reaped."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return True
    return False


def _end_as(code: int) -> None:
    if code < 0:
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
