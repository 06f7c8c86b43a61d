"""Submissions that go on over HTTP while something else is done to the database."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import Counter
from collections.abc import Iterator

import requests

#: What is submitted in turn: most jobs end well, some fail.
JOBS = (
    {"plugin": "echo", "payload": {"text": "hello"}, "tags": ["load"]},
    {"plugin": "echo", "payload": {"text": "good bye"}, "metadata": {"number": 1}},
    {"plugin": "raises", "payload": {}},
    {"plugin": "sleep", "payload": {"seconds": 0.01}},
)


class Load:
    """Submits jobs from a thread of its own, and counts the statuses of the answers."""

    def __init__(self, url: str) -> None:
        self.answers: Counter[int] = Counter()
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._submit, name="load")

    def _submit(self) -> None:
        with requests.Session() as session:
            for job in itertools.cycle(JOBS):
                if self._stop.wait(0.005):
                    return
                self.answers[session.post(f"{self._url}/v1/jobs", json=job, timeout=30).status_code] += 1

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def loaded(url: str, at_least: int = 20) -> Iterator[Load]:
    """Submissions go on while the block runs. Every one of them, `at_least` so many, must have been taken."""
    load = Load(url)
    load.start()
    try:
        yield load
        while load.answers.total() < at_least and load._thread.is_alive():
            load._stop.wait(0.05)
    finally:
        load.stop()
    assert set(load.answers) == {202}, load.answers
    assert load.answers[202] >= at_least
