"""Finds, measures and kills processes: a worker with all that it started. Standard library only."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

#: Environment variable that every worker and what it starts carries: `<instance>/<worker>/`. The last slash
#: keeps the first worker from being taken for the tenth.
MARKER: Final = "SERVICE_WORKER"

#: How long a keeper may take to end what is below it before somebody else does.
KEEPER_GRACE_S: Final = 3.0

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_TICKS: Final = os.sysconf("SC_CLK_TCK")


def join_family(parent: int, death_signal: signal.Signals) -> None:
    """Have this process get `death_signal` when `parent` ends, and adopt all orphans below it; end if it has ended."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(0)
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def pids() -> list[int]:
    """All processes there are now, in ascending order."""
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208  # sampled often


def _read(path: str) -> bytes:
    """A file of /proc; empty where the process is gone or not ours to read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, 65_536)
    except OSError:
        return b""
    finally:
        os.close(fd)


def stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the third (state, parent, group, session, ...) on; empty if it is gone."""
    return _read(f"/proc/{pid}/stat").rpartition(b") ")[2].split()


def _is_alive(fields: list[bytes]) -> bool:
    """Whether what `stat` tells is of a process with a thread: the first one may have ended, and be a zombie."""
    return bool(fields) and (fields[0] not in b"ZX" or int(fields[17]) > 1)


def _read_memory(pid: int, name: str) -> bytes:
    """A file of /proc/PID about the process's memory, by way of a thread that has it: the first one may have ended."""
    content = _read(f"/proc/{pid}/{name}")
    if (not content or content.startswith(b"0 ")) and (fields := stat(pid))[:1] == [b"Z"] and _is_alive(fields):
        with suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208  # no Path at hand
                content = max(content, _read(f"/proc/{pid}/task/{thread}/{name}"), key=len)
    return content


def resident_bytes(pid: int) -> int:
    """Resident memory of one process; 0 if it is gone."""
    fields = _read_memory(pid, "statm").split()
    return int(fields[1]) * _PAGE if fields else 0


def proportional_bytes(pid: int) -> int:
    """Resident memory with shared pages counted in proportion; 0 if it is gone. Slower than `resident_bytes`."""
    _, found, rest = _read_memory(pid, "smaps_rollup").partition(b"\nPss:")
    return int(rest.split(maxsplit=1)[0]) * 1024 if found else resident_bytes(pid)


def cpu_seconds(pid: int) -> float:
    """User and system time of one process and its reaped children; 0 if it is gone."""
    fields = stat(pid)
    return sum(map(int, fields[11:15])) / _TICKS if fields else 0.0


def marked(prefix: str) -> dict[int, bytes]:
    """Living processes whose marker begins with `prefix`, each with its start time (against reuse of the id)."""
    sought = f"{MARKER}={prefix}".encode()
    return {pid: fields[19] for pid in pids() if _carries(pid, sought) and (fields := _alive(pid))}


def _carries(pid: int, sought: bytes) -> bool:
    environment = _read_memory(pid, "environ")
    return environment.startswith(sought) or b"\0" + sought in environment


def _alive(pid: int) -> list[bytes]:
    fields = stat(pid)
    return fields if _is_alive(fields) else []


def family(root: int) -> dict[int, bytes]:
    """`root`'s living descendants and members of its session, each with its start time; `root` itself left out."""
    table = {pid: fields for pid in pids() if (fields := _alive(pid))}
    found = {root} | {pid for pid, fields in table.items() if int(fields[3]) == root}
    grown = 0
    while grown != len(found):
        grown = len(found)
        found |= {pid for pid, fields in table.items() if int(fields[1]) in found}
    return {pid: table[pid][19] for pid in found - {root}}


def kill_family(keeper: int, keeper_pidfd: int, marker: str) -> None:
    """Have a keeper that is not reaped yet end all it has below it, and itself; returns when it has ended.

    One that does not get there, stopped by a plugin say, is killed last: as long as it is there it adopts the orphans
    of those that die, so none of them can leave its family meanwhile.
    """
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(keeper_pidfd, signal.SIGTERM)
        signal.pidfd_send_signal(keeper_pidfd, signal.SIGCONT)
    ending = select.poll()
    ending.register(keeper_pidfd, select.POLLIN)
    if not ending.poll(KEEPER_GRACE_S * 1000):
        kill_below(keeper)
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(keeper_pidfd, signal.SIGKILL)
    _kill_all(lambda: {pid: started for pid, started in marked(marker).items() if pid != keeper})


def kill_below(root: int) -> None:
    """Kill the descendants of a subreaper, for about 3 s at most."""
    _kill_all(lambda: family(root))


def kill_marked(prefix: str) -> None:
    """Kill what carries the marker, again and again until nothing is left (or it cannot be killed)."""
    _kill_all(lambda: marked(prefix))


def _kill_all(find: Callable[[], dict[int, bytes]]) -> None:
    """Kill what `find` finds until it finds nothing twice in a row, for about 3 s at most.

    Twice: one look at /proc takes its time, and misses a process that was forked, or was just executing another
    program, while it looked.
    """
    pause, times_nothing = 0.001, 0
    while times_nothing < 2 and pause < 1:
        found = find()
        times_nothing = 0 if found else times_nothing + 1
        for pid, started in found.items():
            _kill(pid, started)
        time.sleep(pause)
        pause *= 1.5


def _kill(pid: int, started: bytes) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        # Only now that the descriptor holds it can the id not pass to another process.
        if stat(pid)[19:20] == [started]:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError:
        pass
    finally:
        os.close(pidfd)
