"""The load generator: wrk, one thread, 32 keep-alive connections in a closed loop, and what it saw."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

from benchmarks.common import Server, cpu_seconds

CONNECTIONS = 32
#: A load generator busier than this measures itself, not the server.
MAX_GENERATOR_SHARE = 0.9
#: An answer that takes longer is a request refused.
ANSWER_S = 30

_JSON = {"Content-Type": "application/json"}

#: The same request over and over; wrk makes its bytes once.
_SAME = """
wrk.method = "POST"
wrk.body = {body}
"""
#: One path after the other, each request made once.
_IN_TURN = """
local requests, number = {{}}, 0
function init()
  for path in io.lines({paths}) do requests[#requests + 1] = wrk.format("GET", path) end
end
function request()
  number = number % #requests + 1
  return requests[number]
end
"""
#: No two bodies alike: behind the bytes of a file stand those of a number that comes once.
_DISTINCT = """
local file = io.open({file}, "rb")
local content, number = file:read("*a"), 0
file:close()
function request()
  number = number + 1
  return wrk.format("POST", nil, nil, content .. {run} .. string.format("%08x", number))
end
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What wrk saw in one run. Rates are per second, `generator_share` is of one core."""

    rate: float
    requests: int
    p50_ms: float
    p99_ms: float
    refused: int
    generator_share: float
    server_cpu_us: float  # for each request

    @property
    def is_void(self) -> bool:
        """The generator was the limit."""
        return self.generator_share > MAX_GENERATOR_SHARE


def require_wrk() -> None:
    """Leave with one clear line when the load generator is not installed."""
    if shutil.which("wrk") is None:
        sys.exit("This benchmark needs wrk: install your system's package of that name (apt install wrk).")


def wrk_post(
    server: Server,
    path: str,
    body: bytes,
    *,
    seconds: float,
    headers: Mapping[str, str] | None = None,
    connections: int = CONNECTIONS,
) -> Load:
    """Post the JSON `body` for `seconds`."""
    script = _SAME.format(body=json.dumps(body.decode()))
    return _run(server, path, script, {**_JSON, **(headers or {})}, seconds, connections)


def wrk_post_files(
    server: Server, path: str, file: Path, media_type: str, *, seconds: float, headers: Mapping[str, str] | None = None
) -> Load:
    """Post the bytes of `file` for `seconds`, each time with another end, so that no two bodies are alike."""
    script = _DISTINCT.format(file=json.dumps(str(file)), run=json.dumps(uuid4().hex))
    return _run(server, path, script, {"Content-Type": media_type, **(headers or {})}, seconds, CONNECTIONS)


def wrk_get(server: Server, paths: Sequence[str], *, seconds: float) -> Load:
    """Get one path after the other, and from the first again, for `seconds`."""
    with tempfile.NamedTemporaryFile("w", suffix=".paths") as listed:
        listed.write("\n".join(paths) + "\n")
        listed.flush()
        return _run(server, "", _IN_TURN.format(paths=json.dumps(listed.name)), {}, seconds, CONNECTIONS)


def _run(server: Server, path: str, script: str, headers: Mapping[str, str], seconds: float, connections: int) -> Load:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", f"--timeout={ANSWER_S}s", "--latency"]
    for name, value in headers.items():
        command += ["-H", f"{name}: {value}"]
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as lua:
        lua.write(script)
        lua.flush()
        cpu_before, started = cpu_seconds(server.pid), time.monotonic()
        with subprocess.Popen([*command, "-s", lua.name, server.url + path], stdout=subprocess.PIPE, text=True) as wrk:
            assert wrk.stdout
            output = wrk.stdout.read()
            _, status, usage = os.wait4(wrk.pid, 0)
            wrk.returncode = os.waitstatus_to_exitcode(status)
        elapsed = time.monotonic() - started
    if wrk.returncode != 0:
        raise RuntimeError(f"wrk ended with {wrk.returncode}:\n{output}")
    requests = int(_find(r"(\d+) requests in", output))
    return Load(
        rate=float(_find(r"Requests/sec:\s+([\d.]+)", output)),
        requests=requests,
        p50_ms=_milliseconds(_find(r"^\s+50%\s+(\S+)", output)),
        p99_ms=_milliseconds(_find(r"^\s+99%\s+(\S+)", output)),
        refused=int(_find(r"Non-2xx or 3xx responses: (\d+)", output, default="0"))
        + sum(map(int, re.findall(r"(?:connect|read|write|timeout) (\d+)", output))),
        generator_share=(usage.ru_utime + usage.ru_stime) / elapsed,
        server_cpu_us=(cpu_seconds(server.pid) - cpu_before) / max(requests, 1) * 1e6,
    )


def _find(pattern: str, text: str, *, default: str | None = None) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    if found:
        return found[1]
    if default is None:
        raise RuntimeError(f"wrk did not say {pattern!r}:\n{text}")
    return default


def _milliseconds(text: str) -> float:
    found = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text)
    if found is None:
        raise RuntimeError(f"wrk said {text!r} for a time")
    return float(found[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}[found[2]]
