"""Plugins that keep a core busy for as long as they are asked to."""

from __future__ import annotations

import time


def spin(seconds: float) -> dict[str, int]:
    """Work in Python code, where the interpreter may switch threads."""
    end = time.monotonic() + seconds
    rounds = 0
    while time.monotonic() < end:
        rounds += 1
    return {"rounds": rounds}


def hold_gil(seconds: float) -> dict[str, int]:
    """Work in C calls of some hundred milliseconds each, none of which lets go of the interpreter lock."""
    end = time.monotonic() + seconds
    rounds = 0
    while time.monotonic() < end:
        pow(7, 2_000_000)
        rounds += 1
    return {"rounds": rounds}


#: CPU time of the thread that `burn` and `look` take, whatever else the machine does.
WORK_S = 0.020


def burn() -> dict[str, int]:
    """20 ms of work in Python code."""
    end = time.thread_time() + WORK_S
    rounds = 0
    while time.thread_time() < end:
        rounds += 1
    return {"rounds": rounds}


def look(image: bytes, mime_type: str) -> dict[str, object]:
    """20 ms of work beside a picture."""
    return {**burn(), "bytes": len(image), "kind": mime_type}
