"""The guard process: waits for the death of the service, then kills what the keepers of its workers have left."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Final

from service.tool_runner.processes import kill_marked, marked

#: Keepers find more than a guard can, so they come first.
KEEPERS_FIRST_S: Final = 1.0


def main(instance: str) -> None:
    """Block until standard input, a pipe whose other end only the service holds, is closed; then kill by the marker."""
    # Whoever stops the service with a signal to its whole group must not stop the guard before it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 1024):
        pass
    ends = time.monotonic() + KEEPERS_FIRST_S
    while marked(f"{instance}/") and time.monotonic() < ends:
        time.sleep(0.02)  # there is nothing to wait on: they are nobody's children here
    kill_marked(f"{instance}/")


if __name__ == "__main__":
    main(sys.argv[1])
