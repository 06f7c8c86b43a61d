"""The short form of `benchmarks/slow_clients.py`: fewer clients, shorter times, the same promises."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from benchmarks.common import serving
from benchmarks.slow_clients import Crowd, Limits, measure

#: The real service, in whose code only times are shorter.
SHORT = """
from service.api import bodies, connections, streams
connections.HEAD_S = bodies.WINDOW_S = 2.0
connections.TAKE_S = streams.WRITE_S = 3.0
from service.cli import main
main()
"""


def test_clients_that_are_slow_cost_an_honest_one_little_and_are_closed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SHORT, "serve", "--port", "0", "--data-dir", str(tmp_path / "data")]
    # Beside other tests an honest request takes longer, and so does filling the buffers of who does not read.
    limits = Limits(streams_s=3.0, uploads_s=2.0 + 2.0, idle_s=2.0)
    with serving(command) as server:
        figures = measure(server, Crowd(streams=50, uploads=100, idle=50), limits)
    assert figures.broken(dataclasses.replace(limits, streams_s=15), max_p99_ms=2_500) == [], figures
    assert figures.requests > 50
