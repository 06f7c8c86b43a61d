"""The guard process: waits for the death of the service, then kills every worker and all that workers started."""

from __future__ import annotations

import os
import signal
import sys

from service.tool_runner.processes import kill_marked


def main(instance: str) -> None:
    """Block until standard input, a pipe whose other end only the service holds, is closed; then kill by the marker."""
    # Whoever stops the service with a signal to its whole group must not stop the guard before it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 1024):
        pass
    kill_marked(f"{instance}/")


if __name__ == "__main__":
    main(sys.argv[1])
