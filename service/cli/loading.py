"""How the commands load what they are made of."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Import in this block: what is loaded there is never looked through for garbage.

    A start makes hundreds of thousands of objects that stay. Collections that walk them again and again, in vain, took
    a fifth of its time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
