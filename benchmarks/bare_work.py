"""One bare process that calls the function of 20 ms over and over: what a worker could do if nothing were around it."""

from __future__ import annotations

import argparse
import importlib
import sys
import time

from benchmarks.common import PLUGINS


def main() -> None:
    """Wait for a line, work for so long, print how many calls ended a second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--picture-bytes", type=int, default=0, help="hand it a picture of so many bytes")
    options = parser.parse_args()
    sys.path.insert(0, str(PLUGINS))
    busy_plugins = importlib.import_module("busy_plugins")  # the same file that the service's workers load

    picture = bytes(options.picture_bytes)
    print("ready", flush=True)
    sys.stdin.readline()
    calls, began = 0, time.monotonic()
    while time.monotonic() < began + options.seconds:
        if picture:
            busy_plugins.look(picture, "image/png")
        else:
            busy_plugins.burn()
        calls += 1
    print(calls / (time.monotonic() - began))


if __name__ == "__main__":
    main()
