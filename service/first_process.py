"""What process 1 of a container owes to the others: it passes signals on and buries orphans."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Final

_PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run_below(serve: Callable[[], int]) -> int:
    """The exit code of `serve`, run in a child, while this process is the init of its namespace.

    The kernel gives process 1 every orphan to reap, and ignores for it the signals it has no handler for. A service
    that reaps whatever dies would take the exit status of its own workers away from those who wait for it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        return serve()
    for number in _PASSED_ON:
        signal.signal(number, lambda received, _: os.kill(child, received))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
