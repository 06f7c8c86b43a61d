"""A plugin whose import does what a module `hostile_switch`, put on the path by whoever wants to see it, says."""

from __future__ import annotations

import os
import time

try:
    from hostile_switch import IMPORT
except ImportError:
    IMPORT = "behave"

if IMPORT == "hang":
    time.sleep(3600)
elif IMPORT == "crash":
    os._exit(5)
elif IMPORT == "raise":
    raise RuntimeError("not today")
elif IMPORT == "exit":
    raise SystemExit(0)


def moody(payload: dict) -> dict:
    return {"import": IMPORT}
