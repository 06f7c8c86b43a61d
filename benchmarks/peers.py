"""Other job queues on the same work: live, with the results stored, each in an environment of its own.

One client enqueues no-op jobs with the library's own call as fast as it can, asynchronous ones with 32 calls in flight
(8 where each holds a connection to PostgreSQL), while workers run them. No HTTP is between client and queue, unlike
ours. Ours takes its turn in every round.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from benchmarks import redis_server
from benchmarks.common import RESULTS, ROOT, console
from benchmarks.context import Context
from benchmarks.databases import DURABILITY, driver_url
from benchmarks.figures import Sample, alternate, rates
from benchmarks.rates import fresh_live

APPS = ROOT / "benchmarks/peer_apps"
ENVIRONMENTS = RESULTS / "peers"
BEST_DURABLE = "live / best durable peer that stores results"
BEST_REDIS = "live / best Redis peer"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A job queue and how it is run. `jobs` is how many a round has, `leads` whether it stands in the short form."""

    name: str
    package: str
    on: str  # redis, sqlite or postgresql
    jobs: int
    stores_results: bool = True
    leads: bool = False
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def durability(self) -> str:
        """What survives when the power goes."""
        if self.on == "redis":
            return redis_server.DURABILITY
        text = DURABILITY["postgresql"] if self.on == "postgresql" else "every row: SQLite, fsync=True"
        return text if self.stores_results else f"{text}; stores no result"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """Jobs a second from enqueue to execution, and of the enqueueing alone."""

    rate: float
    enqueue_rate: float
    is_void: bool = False


PEERS = (
    Peer(name="huey (SQLite, fsync)", package="huey", on="sqlite", jobs=2_000, leads=True),
    Peer(name="huey (Redis)", package="huey", on="redis", jobs=4_000, leads=True, environment={"PEER_HUEY": "redis"}),
    Peer(name="Dramatiq (Redis)", package="dramatiq", on="redis", jobs=4_000, leads=True),
    Peer(name="SAQ (Redis)", package="saq", on="redis", jobs=3_000, leads=True),
    Peer(name="Celery (Redis)", package="celery", on="redis", jobs=1_500),
    Peer(name="PgQueuer (PostgreSQL)", package="pgqueuer", on="postgresql", jobs=2_000, stores_results=False),
    Peer(name="Procrastinate (PostgreSQL)", package="procrastinate", on="postgresql", jobs=500, stores_results=False),
)


def install(package: str) -> Path:
    """The Python of an environment that has the package, at the versions listed; made where it is not there yet.

    Raises `RuntimeError` with the end of what pip said when it cannot be made.
    """
    folder, requirements = ENVIRONMENTS / package, APPS / "requirements" / f"{package}.txt"
    python, stamp = folder / "bin/python", folder / "installed.txt"
    if not stamp.exists() or stamp.read_text() != requirements.read_text():
        console.print(f"Installing {package} into {folder.relative_to(ROOT)}")
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(requirements)]
        for command in ([sys.executable, "-m", "venv", "--clear", str(folder)], pip):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{package} cannot be installed: {done.stderr.strip()[-400:]}")
        stamp.write_text(requirements.read_text())
    return python


def run(peer: Peer, python: Path, context: Context, redis: str | None) -> Live:
    """One round of a peer, on a fresh database."""
    jobs = peer.jobs // 2 if context.is_short else peer.jobs
    with tempfile.TemporaryDirectory(prefix="bench-peer-", ignore_cleanup_errors=True) as folder:
        environment = {"PEER_FOLDER": folder, "PYTHONPATH": str(APPS), "PYTHONDONTWRITEBYTECODE": "1"}
        if peer.on == "redis":
            assert redis is not None
            environment["PEER_REDIS"] = redis
        elif peer.on == "postgresql":
            assert context.postgres is not None
            environment["PEER_POSTGRESQL"] = driver_url(context.postgres.new_database())
        done = subprocess.run(
            [str(python), str(APPS / "drive.py"), f"{peer.package}_app", "--jobs", str(jobs)],
            cwd=APPS,
            env={**os.environ, **environment, **peer.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            log = Path(folder) / "log"
            said = done.stderr + (log.read_text(errors="replace") if log.exists() else "")
            raise RuntimeError(f"{peer.name} failed: {said.strip()[-400:]}")
    return Live(**json.loads(done.stdout.splitlines()[-1]))


def measure(context: Context) -> None:
    """Enter the rates of all peers, and ours as a multiple of the best."""
    with contextlib.ExitStack() as stack:
        redis = None
        try:
            redis = stack.enter_context(redis_server.redis_server())
        except RuntimeError as error:
            context.book.miss("peers on Redis", str(error))
            context.book.miss(BEST_REDIS, str(error))
        ready = _ready(context, redis)
        runs: dict[str, Callable[[], Sample]] = {
            "ours": partial(fresh_live, context, "sqlite"),
            **{peer.name: partial(run, peer, python, context, redis) for peer, python in ready},
        }
        samples = alternate(context.rounds, runs)
    mine = rates(samples["ours"])
    context.book.add("live, beside the peers", mine, durability=DURABILITY["sqlite"], note="through HTTP")
    for peer, _ in ready:
        context.book.add(f"live, {peer.name}", rates(samples[peer.name]), durability=peer.durability)
    groups = {
        BEST_DURABLE: [peer.name for peer, _ in ready if peer.on != "redis" and peer.stores_results],
        BEST_REDIS: [peer.name for peer, _ in ready if peer.on == "redis"],
    }
    for name, peers in groups.items():
        if peers:
            best = [max(of_round) for of_round in zip(*(rates(samples[peer]) for peer in peers), strict=True)]
            context.book.add_ratio(name, mine, best)


def _ready(context: Context, redis: str | None) -> list[tuple[Peer, Path]]:
    """The peers that can be run, each after a round that shows it; those that cannot be are named in the book."""
    ready = []
    for peer in PEERS:
        if context.is_short and not peer.leads:
            continue
        if peer.on == "redis" and redis is None:
            continue
        if peer.on == "postgresql" and context.postgres is None:
            context.book.miss(f"live, {peer.name}", "there is no PostgreSQL server")
            continue
        try:
            python = install(peer.package)
            if not context.is_short:
                run(peer, python, context, redis)
        except RuntimeError as error:
            context.book.miss(f"live, {peer.name}", str(error))
            continue
        ready.append((peer, python))
    return ready
