"""Cuts the power under a loaded service: `python -m tests.durability.power_cut`, a line a round, 1 on any loss.

The data is on a file system of its own in a file. Copied while the service is stopped, that file is what a disk holds
after a cut: what the file system has issued, without what only its cache has. Killing the service cannot show that.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests

from tests.durability.planted import BUGS
from tests.durability.service import Accepted, Process

CLIENTS = 8
ACCEPTED = (50, 400)  # before the cut: at least, at most
_TOOLS = ("mkfs.ext4", "mount", "umount", "cp", "cmp")
_DISK_BYTES = 256 * 1024 * 1024  # sparse
_FILE_BYTES = 100_000
_ROW_BYTES = 300
#: What payloads come with, in turn. Only every other round makes files: their syncs take along what a commit forgot.
_SIZES = ((_FILE_BYTES, None, _ROW_BYTES, None), (_ROW_BYTES, None))


def missing_tools() -> list[str]:
    return [tool for tool in _TOOLS if shutil.which(tool) is None]


def not_permitted() -> str | None:
    """Why no image can be mounted here; None if one can."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            with _mounted(_formatted(Path(directory) / "image"), Path(directory) / "disk"):
                return None
        except (subprocess.CalledProcessError, OSError) as error:
            return f"no image can be mounted here: {getattr(error, 'stderr', '') or error}".strip()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What was left after one cut."""

    accepted: int
    files: int  # of them, how many came with a file's worth of bytes
    lost: Sequence[str]  # ids without a row
    damaged: Sequence[str]  # ids without their payload or bytes
    corrupt: str | None = None  # the database, or a service that does not start on it

    @property
    def is_sound(self) -> bool:
        return not (self.lost or self.damaged or self.corrupt)

    def __str__(self) -> str:
        counts = f"{self.accepted} accepted ({self.files} with a file), {len(self.lost)} lost"
        return f"{counts}, {len(self.damaged)} damaged, {self.corrupt or 'sound'}"


def cut(directory: Path, seed: int, bug: str | None = None) -> Round:
    """One round in `directory`, which is left empty but for the logs.

    The seed decides after how many answers, and whether there are files (even) or not (odd).
    """
    disk, copy = directory / f"{seed}.image", directory / f"{seed}.cut"
    try:
        with _mounted(_formatted(disk), directory / f"{seed}-disk") as data_dir:
            service = Process(data_dir, bug=bug)
            try:
                accepted = _loaded_until_cut(service, disk, copy, seed)
            finally:
                service.close()
        with _mounted(copy, directory / f"{seed}-after") as data_dir:
            files = sum(_size(one.n, seed) == _FILE_BYTES for one in accepted)
            return _judge(data_dir, accepted, files)
    finally:
        disk.unlink(missing_ok=True)
        copy.unlink(missing_ok=True)


def _loaded_until_cut(service: Process, disk: Path, copy: Path, seed: int) -> list[Accepted]:
    """Load `service`, stop it at a random moment, and copy its disk; all that it acknowledged until then."""
    chance = random.Random(seed)
    accepted: list[Accepted] = []
    enough = threading.Event()
    count = chance.randint(*ACCEPTED)

    def submit(first: int) -> None:
        for n in range(first, sys.maxsize, CLIENTS):
            size = _size(n, seed)
            try:
                accepted.append(service.submit(n, None if size is None else os.urandom(size)))
            except requests.RequestException:
                return
            finally:
                if len(accepted) >= count:
                    enough.set()

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(submit, first) for first in range(CLIENTS)]
        try:
            assert enough.wait(60), f"only {len(accepted)} of {count} submissions were accepted"
            time.sleep(chance.uniform(0, 0.02))  # not always right after an answer
            service.signal(signal.SIGSTOP)
            os.waitid(os.P_PID, service.popen.pid, os.WSTOPPED)
            _copy_without_sync(disk, copy)
        finally:
            service.close()  # which ends the clients
    for client in clients:
        client.result()
    return accepted


def _copy_without_sync(disk: Path, copy: Path) -> None:
    # The kernel may write some of its cache to the disk meanwhile. A copy that equals the disk after it was made is one
    # of a single moment.
    for _ in range(50):
        _run("cp", "--sparse=always", str(disk), str(copy))
        if subprocess.run(["cmp", "--silent", str(disk), str(copy)], check=False).returncode == 0:
            return
    raise AssertionError("the disk never stood still")


def _judge(data_dir: Path, accepted: Sequence[Accepted], files: int) -> Round:
    try:
        with contextlib.closing(sqlite3.connect(data_dir / "jobs.db")) as connection:
            found = "; ".join(row[0] for row in connection.execute("PRAGMA integrity_check"))
            payloads = dict(connection.execute("SELECT id, payload FROM jobs"))
            blobs = dict(connection.execute("SELECT sha256, data FROM blobs"))
    except sqlite3.Error as error:
        ids = [one.id for one in accepted]
        return Round(accepted=len(accepted), files=files, lost=ids, damaged=(), corrupt=f"unreadable: {error}")

    def is_whole(one: Accepted) -> bool:
        if f'"n":{one.n}' not in payloads[one.id].replace(" ", ""):
            return False
        if one.sha256 is None:
            return True
        if one.sha256 not in blobs or one.sha256 not in payloads[one.id]:
            return False
        data = blobs[one.sha256]
        file = data_dir / "blobs" / one.sha256[:2] / one.sha256
        if data is None:
            data = file.read_bytes() if file.exists() else b""
        return hashlib.sha256(data).hexdigest() == one.sha256

    corrupt = None if found == "ok" else found
    try:
        Process(data_dir).close()
    except AssertionError as error:
        corrupt = corrupt or str(error)
    return Round(
        accepted=len(accepted),
        files=files,
        lost=[one.id for one in accepted if one.id not in payloads],
        damaged=[one.id for one in accepted if one.id in payloads and not is_whole(one)],
        corrupt=corrupt,
    )


def _size(n: int, seed: int) -> int | None:
    sizes = _SIZES[seed % len(_SIZES)]
    return sizes[n // CLIENTS % len(sizes)]


def _formatted(image: Path) -> Path:
    with image.open("wb") as file:
        file.truncate(_DISK_BYTES)
    # Nothing is left for the kernel to initialize later, while the disk is copied.
    _run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image))
    return image


@contextlib.contextmanager
def _mounted(image: Path, at: Path) -> Iterator[Path]:
    """`image` mounted at the new directory `at`; mounting replays its journal, as a machine does at start."""
    at.mkdir()
    try:
        _run("mount", "-o", "loop", str(image), str(at))
        try:
            yield at
        finally:
            # Lazily: a worker of a service that was killed may need a moment to notice.
            _run("umount", "--lazy", str(at))
    finally:
        at.rmdir()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.durability.power_cut", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1, help="of the first round")
    parser.add_argument("--bug", choices=sorted(BUGS), help="a bug to plant: it must lose something")
    options = parser.parse_args(arguments)
    reason = f"missing: {', '.join(missing_tools())}" if missing_tools() else not_permitted()
    if reason:
        parser.exit(2, f"The power cannot be cut: {reason}\n")
    rounds = []
    with tempfile.TemporaryDirectory(prefix="power-cut-") as directory:
        for number in range(options.seed, options.seed + options.rounds):
            rounds.append(cut(Path(directory), number, options.bug))
            print(f"cut {number}: {rounds[-1]}", flush=True)
    broken = sum(not one.is_sound for one in rounds)
    print(
        f"{len(rounds)} cuts: {sum(one.accepted for one in rounds)} accepted"
        f" ({sum(one.files for one in rounds)} with a file), {sum(len(one.lost) for one in rounds)} lost,"
        f" {sum(len(one.damaged) for one in rounds)} damaged, {broken} cuts with a loss"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
