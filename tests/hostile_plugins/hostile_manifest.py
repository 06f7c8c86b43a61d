"""A plugin that describes itself in the place of its worker, with a number that no plugin may have."""

from __future__ import annotations

from hostile import forges, neighbour

MANIFEST = {
    "name": "forges_a_manifest",
    "version": "1",
    "description": "",
    "input_schema": {"type": "object"},
    "output_schema": None,
    "untyped": True,
    "timeout_s": None,
    "setup_timeout_s": None,
    "memory_mb": None,
    "concurrency": 0,
    "max_attempts": None,
    "short": False,
}

forges({"frames": [[16, {"manifest": MANIFEST, "teardown": False}, 3600]]})

run = neighbour
