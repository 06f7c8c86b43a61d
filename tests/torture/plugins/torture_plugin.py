"""A plugin that logs each of its executions outside the service, and behaves as its payload says."""

from __future__ import annotations

import ctypes
import hashlib
import os
import time
import uuid
from pathlib import Path
from typing import Any

#: The service's process: the parent of the keeper that is the parent of this one.
SERVICE = int(Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[1])


def answer(value: int) -> str:
    """The pure function of the input that every result carries."""
    return hashlib.sha256(f"torture {value}".encode()).hexdigest()[:16]


def torture(payload: dict, context: Any) -> dict:
    nonce = uuid.uuid4().hex
    # One write with O_APPEND each: lines of processes that die or run at once are never torn nor mixed.
    log = os.open(payload["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _note(log, "S", context, nonce)
        returned = _BEHAVIOURS[payload["behaviour"]](payload, context)
        _note(log, "E", context, nonce)
    finally:
        os.close(log)
    return {"nonce": nonce, "answer": answer(payload["value"]), **returned}


def _note(log: int, kind: str, context: Any, nonce: str) -> None:
    line = f"{kind} {context.job_id} {context.attempt} {nonce} {os.getpid()} {SERVICE} {time.time():.6f}\n"
    os.write(log, line.encode())


def _sleep(payload: dict, context: Any) -> dict:
    time.sleep(payload["seconds"])
    return {}


def _progress(payload: dict, context: Any) -> dict:
    for step in range(5):
        context.progress(step / 5, f"step {step}")
        time.sleep(payload["seconds"] / 5)
    return {}


def _bytes(payload: dict, context: Any) -> dict:
    context.artifact("half", payload["data"][: len(payload["data"]) // 2 + 1], "application/octet-stream")
    return {"data": payload["data"]}


def _raise(payload: dict, context: Any) -> dict:
    raise RuntimeError("asked to")


def _exit(payload: dict, context: Any) -> dict:
    os._exit(3)


def _segfault(payload: dict, context: Any) -> dict:
    ctypes.string_at(0)
    return {}


def _hang(payload: dict, context: Any) -> dict:
    while True:
        time.sleep(3600)


def _bad(payload: dict, context: Any) -> dict:
    return {"not": float("nan")}


_BEHAVIOURS = {
    "fast": lambda payload, context: {},
    "sleep": _sleep,
    "progress": _progress,
    "bytes": _bytes,
    "raise": _raise,
    "exit": _exit,
    "segfault": _segfault,
    "hang": _hang,
    "bad": _bad,
}
