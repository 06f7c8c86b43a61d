"""A service whose acknowledgements can be compared with what reached the disk."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests

from tests.built_in import install_only

#: The bytes of these tests are to be in files, whatever is the default.
_OPTIONS = ("--port", "0", "--inline-blob-kb", "64")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A submission that was answered with 202."""

    id: str
    n: int
    sha256: str | None  # of the bytes it came with


class Process:
    """`jobservice serve` on `data_dir`, under a command (`wrapper`) and with a planted bug if one is named."""

    def __init__(self, data_dir: Path, *, wrapper: Sequence[str] = (), bug: str | None = None) -> None:
        self.data_dir = data_dir
        self._log = data_dir.with_name(f"{data_dir.name}.log")
        module = ["tests.durability.planted", bug] if bug else ["service"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("JOBSERVICE_")}
        environment["PYTHONPATH"] = str(install_only(data_dir.parent, ["echo"]))
        with self._log.open("ab") as log:
            self.popen = subprocess.Popen(
                [*wrapper, sys.executable, "-m", *module, "serve", *_OPTIONS, "--data-dir", str(data_dir)],
                env=environment,
                cwd=Path(__file__).parents[2],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.popen.stdout
        urls = (re.search(r"http://\S+", line) for line in self.popen.stdout)
        found = next((url for url in urls if url), None)
        assert found, f"it did not start:\n{self._log.read_text()}"
        self.url = found[0]

    @property
    def pid(self) -> int:
        """Of the service itself, whatever it runs under."""
        return int((self.data_dir / "jobs.db.lock").read_text())

    def submit(self, n: int, data: bytes | None = None) -> Accepted:
        """Submit job number `n`; with `data`, its bytes are in the payload."""
        payload: dict[str, object] = {"n": n}
        if data is not None:
            payload["file"] = {"$bytes": base64.b64encode(data).decode()}
        answer = requests.post(f"{self.url}/v1/jobs", json={"plugin": "echo", "payload": payload}, timeout=30)
        assert answer.status_code == 202, answer.text
        return Accepted(id=answer.json()["id"], n=n, sha256=hashlib.sha256(data).hexdigest() if data else None)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def close(self) -> None:
        """Kill what still runs."""
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        assert self.popen.stdout
        self.popen.stdout.close()

    def file_of(self, accepted: Accepted) -> Path | None:
        sha256 = accepted.sha256
        return None if sha256 is None else self.data_dir / "blobs" / sha256[:2] / sha256


def submit_many(service: Process, count: int, *, clients: int = 4) -> list[Accepted]:
    """`count` submissions by several clients at once, every fourth with bytes too large for the database."""
    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(lambda n: service.submit(n, os.urandom(100_000) if n % 4 == 0 else None), range(count)))
