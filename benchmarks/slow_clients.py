"""What clients that never read, drip or say nothing cost an honest one: its latency, the service's memory, and how soon
each of them is closed. Run: `python -m benchmarks.slow_clients`.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import os
import select
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from benchmarks.common import ROOT, Server, cpu_seconds, job_service, percentile, print_table, save
from service.api import bodies, connections, streams

HONEST = 4
MAX_P99_MS = 500
MAX_GROWTH_MB = 150
#: What one look at the sockets may be late, and an answer and its close take.
SLACK_S = 5.0
#: More than all buffers between the service and a client that does not read.
BACKLOG_JOBS = 2_000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """How many of each kind there are."""

    streams: int
    uploads: int
    idle: int

    @property
    def total(self) -> int:
        """All together."""
        return self.streams + self.uploads + self.idle


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """After how many seconds the service promises to have closed each kind."""

    streams_s: float = streams.WRITE_S
    uploads_s: float = bodies.WINDOW_S + connections.LINGERING_S
    idle_s: float = connections.HEAD_S


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was measured. `closed_s` is by kind, None where some were still open: from the last one's opening on; for
    streams, from the moment when the last of them took something.
    """

    before_p99_ms: float
    p50_ms: float
    p99_ms: float
    requests: int
    refused: int
    growth_mb: float
    server_cpu_s: float
    opened_in_s: float
    closed_s: dict[str, float | None]

    def broken(self, limits: Limits, max_p99_ms: float = MAX_P99_MS) -> list[str]:
        """The promises that were not kept."""
        found = []
        if self.refused:
            found.append(f"{self.refused} of {self.requests} honest requests failed")
        if self.p99_ms >= max_p99_ms:
            found.append(f"p99 {self.p99_ms:.0f} ms")
        if self.growth_mb >= MAX_GROWTH_MB:
            found.append(f"memory grew by {self.growth_mb:.0f} MB")
        for kind, limit_s in (
            ("streams", limits.streams_s),
            ("uploads", limits.uploads_s),
            ("idle", limits.idle_s),
        ):
            closed_s = self.closed_s[kind]
            if closed_s is None or closed_s > limit_s + SLACK_S:
                found.append(f"{kind} closed after {closed_s} s, not {limit_s:g} s")
        return found


def measure(server: Server, crowd: Crowd, limits: Limits) -> Figures:
    """Let the crowd come at once, and watch until the last of it is gone."""
    _fill(server)
    with _Honest(server) as honest:
        time.sleep(3)
        before, resident_mb, files = honest.taken(), _resident_mb(server.pid), _sockets(server.pid)
        started, cpu_before_s = time.monotonic(), cpu_seconds(server.pid)
        with subprocess.Popen(
            [
                sys.executable,
                "-m",
                "benchmarks.slow_clients",
                "--crowd",
                json.dumps([server.url, *dataclasses.astuple(crowd)]),
            ],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as attack:
            assert attack.stdout
            assert attack.stdin
            opened = json.loads(attack.stdout.readline())
            most_mb, closed_at, has_come = resident_mb, None, False
            end = time.monotonic() + max(dataclasses.astuple(limits)) + 6 * SLACK_S
            while time.monotonic() < end and closed_at is None:
                most_mb = max(most_mb, _resident_mb(server.pid))
                sockets = _sockets(server.pid)
                has_come = has_come or sockets > files + crowd.total / 2
                if has_come and sockets < files + HONEST:
                    closed_at = time.monotonic()
                time.sleep(0.1)
            attack.stdin.close()  # it tells what it saw, and ends
            seen = json.loads(attack.stdout.readline())
        during = honest.taken()
    # A client that does not read does not see its end: the service's own sockets tell.
    full_at = started + opened["seconds"] + seen.pop("full_s")
    seen["streams"] = None if closed_at is None else closed_at - full_at
    return Figures(
        before_p99_ms=percentile(before.times, 0.99) * 1000,
        p50_ms=percentile(during.times, 0.5) * 1000,
        p99_ms=percentile(during.times, 0.99) * 1000,
        requests=len(during.times),
        refused=before.refused + during.refused,
        growth_mb=most_mb - resident_mb,
        server_cpu_s=cpu_seconds(server.pid) - cpu_before_s,
        opened_in_s=opened["seconds"],
        closed_s=seen,
    )


def _fill(server: Server) -> None:
    """Events for those who do not read: jobs that wait for the next century."""
    with requests.Session() as session:
        for number in range(BACKLOG_JOBS):
            body = {"plugin": "echo", "payload": {"n": number}, "run_at": "2999-01-01T00:00:00Z"}
            session.post(f"{server.url}/v1/jobs", json=body, timeout=30).raise_for_status()


@dataclasses.dataclass(slots=True)
class _Taken:
    times: list[float]
    refused: int


class _Honest:
    """A few clients that submit a job and read it, each request on a connection of its own, until the block ends."""

    def __init__(self, server: Server) -> None:
        self._url = server.url
        self._stopping = threading.Event()
        self._taken = _Taken([], 0)
        self._threads = [threading.Thread(target=self._run) for _ in range(HONEST)]

    def __enter__(self) -> _Honest:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def taken(self) -> _Taken:
        """What was measured since the last time."""
        taken, self._taken = self._taken, _Taken([], 0)
        return taken

    def _run(self) -> None:
        while not self._stopping.is_set():
            submitted = self._request("POST", "/v1/jobs", {"plugin": "echo", "payload": {"text": "hello"}})
            if submitted is not None:
                self._request("GET", f"/v1/jobs/{submitted['id']}")
            self._stopping.wait(0.05)

    def _request(self, method: str, path: str, body: Any = None) -> Any:
        started = time.monotonic()
        try:
            answer = requests.request(method, self._url + path, json=body, timeout=30)
        except requests.RequestException:
            self._taken.refused += 1
            return None
        self._taken.times.append(time.monotonic() - started)
        if answer.status_code >= 400:
            self._taken.refused += 1
            return None
        return answer.json()


def _resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _sockets(pid: int) -> int:
    """How many sockets a process has."""
    count = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            count += str(entry.readlink()).startswith("socket:")
        except FileNotFoundError:
            continue
    return count


class _Attack:
    """The crowd: sockets on one epoll, in a process of their own, so that they take no time from the honest clients."""

    def __init__(self, url: str, crowd: Crowd) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 0)
        self._crowd = crowd
        self._poll = select.epoll()
        self._open: dict[int, tuple[str, socket.socket]] = {}
        self._last_closed: dict[str, float] = {}
        self._unread: dict[int, int] = {}
        self._full_at = 0.0

    def run(self) -> None:
        started = time.monotonic()
        for kind, request in self._requests():
            connection = socket.create_connection(self._address, timeout=60)
            connection.sendall(request)
            self._open[connection.fileno()] = kind, connection
            # Reading is what nobody here does; the end of an upload or of silence shows all the same.
            self._poll.register(connection, select.EPOLLRDHUP)
        opened = time.monotonic()
        print(json.dumps({"seconds": opened - started}), flush=True)
        self._poll.register(sys.stdin, select.EPOLLIN)
        drip_at = self._full_at = opened
        while True:
            for descriptor, _ in self._poll.poll(0.2):
                if descriptor == sys.stdin.fileno():
                    self._tell(opened)
                    return
                self._close(descriptor)
            if time.monotonic() >= drip_at:
                drip_at += 1.0
                self._drip()
                self._look_at_streams()

    def _requests(self) -> Iterator[tuple[str, bytes]]:
        stream = b"GET /v1/events?last_event_id=0-0 HTTP/1.1\r\nHost: localhost\r\n\r\n"
        upload = (
            b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
        )
        yield from [("streams", stream)] * self._crowd.streams
        yield from [("uploads", upload)] * self._crowd.uploads
        yield from [("idle", b"")] * self._crowd.idle

    def _drip(self) -> None:
        for descriptor, (kind, connection) in list(self._open.items()):
            if kind == "uploads":
                try:
                    connection.send(b"x", socket.MSG_DONTWAIT)
                except OSError:
                    self._close(descriptor)

    def _look_at_streams(self) -> None:
        """The kernel takes what fits into its buffers, although nobody reads it."""
        for descriptor, (kind, _) in self._open.items():
            if kind == "streams":
                (unread,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))
                if unread > self._unread.get(descriptor, 0):
                    self._unread[descriptor] = unread
                    self._full_at = time.monotonic()

    def _close(self, descriptor: int) -> None:
        kind, connection = self._open.pop(descriptor, (None, None))
        if kind is not None and connection is not None:
            self._last_closed[kind] = time.monotonic()
            self._poll.unregister(descriptor)
            connection.close()

    def _tell(self, opened: float) -> None:
        still = {kind for kind, _ in self._open.values()}
        seen = {
            kind: None if kind in still else self._last_closed.get(kind, opened) - opened
            for kind in ("uploads", "idle")
        }
        print(json.dumps({**seen, "full_s": self._full_at - opened}), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and save; the exit code is 1 if a promise was not kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slow_clients", description=__doc__)
    parser.add_argument("--streams", type=int, default=1_000, help="clients that follow all jobs and never read")
    parser.add_argument("--uploads", type=int, default=2_000, help="clients that send a byte a second")
    parser.add_argument("--idle", type=int, default=1_000, help="clients that say nothing")
    parser.add_argument("--crowd", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.crowd:
        url, *sizes = json.loads(options.crowd)
        _Attack(url, Crowd(**dict(zip(("streams", "uploads", "idle"), sizes, strict=True)))).run()
        return 0
    crowd, limits = Crowd(streams=options.streams, uploads=options.uploads, idle=options.idle), Limits()
    room = str(crowd.streams + 10)
    with (
        tempfile.TemporaryDirectory(prefix="slow-clients-") as folder,
        job_service(Path(folder), "--max-streams", room, "--max-streams-per-caller", room) as server,
    ):
        figures = measure(server, crowd, limits)
    print_table(
        f"{crowd.streams} streams unread, {crowd.uploads} dripping uploads, {crowd.idle} idle connections",
        ["", "measured", "limit"],
        [
            ["honest p99 before, ms", f"{figures.before_p99_ms:.0f}", ""],
            ["honest p50, ms", f"{figures.p50_ms:.0f}", ""],
            ["honest p99, ms", f"{figures.p99_ms:.0f}", str(MAX_P99_MS)],
            ["honest requests", str(figures.requests), ""],
            ["refused", str(figures.refused), "0"],
            ["memory grown, MB", f"{figures.growth_mb:.0f}", str(MAX_GROWTH_MB)],
            ["CPU time of the service, s", f"{figures.server_cpu_s:.1f}", ""],
            ["all opened within, s", f"{figures.opened_in_s:.1f}", ""],
            *(
                [
                    f"{kind} closed after, s",
                    "not in time" if figures.closed_s[kind] is None else f"{figures.closed_s[kind]:.1f}",
                    f"{limit:g}",
                ]
                for kind, limit in zip(("streams", "uploads", "idle"), dataclasses.astuple(limits), strict=True)
            ),
        ],
    )
    save("slow_clients", {"crowd": dataclasses.asdict(crowd), **dataclasses.asdict(figures)})
    for what in (broken := figures.broken(limits)):
        print(f"Not kept: {what}", file=sys.stderr)
    return 1 if broken else 0


def _seconds(measured: float | None) -> str:
    return "not in time" if measured is None else f"{measured:.1f}"


if __name__ == "__main__":
    sys.exit(main())
