"""A Redis with stock settings, started for the suite."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

START_S = 20
#: What survives when the power goes, or the server is killed.
DURABILITY = "none of the last minutes: Redis snapshots"


def find_redis() -> str | None:
    """The path of the server; None where it is not installed."""
    return shutil.which("redis-server")


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """The URL of a server that keeps its files in a folder of its own. Raises `RuntimeError` if it does not start."""
    command = find_redis()
    if command is None:
        raise RuntimeError("redis-server is not installed (apt install redis-server)")
    with tempfile.TemporaryDirectory(prefix="bench-redis-") as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        with (
            (Path(folder) / "log").open("wb") as log,
            subprocess.Popen(
                [command, "--bind", "127.0.0.1", "--port", str(port), "--dir", folder], stdout=log, stderr=log
            ) as server,
        ):
            try:
                _await_port(server, port)
                yield f"redis://127.0.0.1:{port}/0"
            finally:
                server.terminate()


def _await_port(server: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.02)  # nothing tells when it listens
    raise RuntimeError("redis-server did not start")
