"""Starts worker processes and the guard: command line, environment, descriptors."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import service
from service import failpoints
from service.tool_runner.processes import MARKER

#: What a plugin gets to see of the service's environment; never a secret or a setting of the service.
ALLOWED_VARIABLES: Final = frozenset(
    """
    PATH HOME USER LOGNAME LANG LANGUAGE LC_ALL LC_CTYPE LC_COLLATE LC_MESSAGES LC_MONETARY LC_NUMERIC LC_TIME TZ
    LD_LIBRARY_PATH VIRTUAL_ENV XDG_CACHE_HOME SSL_CERT_FILE SSL_CERT_DIR
    CUDA_VISIBLE_DEVICES NVIDIA_VISIBLE_DEVICES TESSDATA_PREFIX HF_HOME TORCH_HOME
    """.split()  # noqa: SIM905  # one name a line is 24 lines
)

#: Several workers share the cores: a library that starts a thread for every core in each of them slows all down.
ONE_THREAD: Final = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

_PACKAGES = str(Path(service.__file__).resolve().parents[1])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A keeper with its worker that were started, and the ends that the service holds of them.

    `process` and `pidfd` are the keeper's, who ends as the worker did. It is reaped by its owner only.
    """

    process: subprocess.Popen[bytes]
    pidfd: int
    connection: socket.socket
    output: int  # descriptor of the unnamed file that takes what the worker prints
    folder: Path
    marker: str


def start_worker(marker: str, folder: Path) -> Child:
    """Start a worker and its keeper in `folder`, made here. Blocks until the program is running; raises `OSError`.

    The calling thread must live as long as the worker: the keeper ends the worker when it ends.
    """
    folder.mkdir()
    environment = _environment() | {MARKER: marker, "TMPDIR": str(folder)}
    ours, theirs = socket.socketpair()
    output = -1
    try:
        with theirs:
            output, path = tempfile.mkstemp(prefix="output-", dir=folder)
            os.set_inheritable(output, False)
            os.unlink(path)  # noqa: PTH108  # no Path at hand
            append = os.open(f"/proc/self/fd/{output}", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            try:
                process = subprocess.Popen(  # noqa: S603  # our own program
                    _command("service.tool_runner.keeper", str(theirs.fileno()), str(os.getpid())),
                    stdin=subprocess.DEVNULL,
                    stdout=append,
                    stderr=append,
                    pass_fds=[theirs.fileno()],
                    cwd=folder,
                    env=environment,
                    start_new_session=True,
                )
            finally:
                os.close(append)
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        ours.close()
        if output >= 0:
            os.close(output)
        raise
    ours.setblocking(False)
    failpoints.hit("child.spawned")
    return Child(process=process, pidfd=pidfd, connection=ours, output=output, folder=folder, marker=marker)


def start_guard(instance: str) -> subprocess.Popen[bytes]:
    """Start the guard of this service process; closing its standard input (or dying) sets it off. Raises `OSError`."""
    return subprocess.Popen(  # noqa: S603  # our own program
        _command("service.tool_runner.guard", instance),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env=_environment(),
        start_new_session=True,
    )


def _command(module: str, *arguments: str) -> list[str]:
    # -P: a module in the working directory must not take the place of ours.
    return [sys.executable, "-P", "-m", module, *arguments]


def _environment() -> dict[str, str]:
    allowed = {name: value for name, value in os.environ.items() if name in ALLOWED_VARIABLES}
    threads = {name: os.environ.get(name, "1") for name in ONE_THREAD}
    return allowed | threads | failpoints.environment() | {"PYTHONPATH": _PACKAGES}
