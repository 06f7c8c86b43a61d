"""The standard streams of the process."""

from __future__ import annotations

import os
import sys


def open_missing() -> None:
    """Where a standard stream is closed, put the null device there.

    Else the next file or socket that is opened would get its number: what is printed would go into it, and the event
    loop ends the process when it closes one.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
