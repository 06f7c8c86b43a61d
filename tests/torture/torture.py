"""One run: start the service, load it, hurt it, heal it, let it finish, judge it; one JSON line of figures."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.torture.chaos import PROFILES, Chaos
from tests.torture.deployment import SERVICE, Deployment, Member, postgres_deployment, sqlite_deployment
from tests.torture.history import History
from tests.torture.load import Load
from tests.torture.oracle import Oracle
from tests.torture.webhooks import RECEIVER_SETTINGS, Receiver, all_delivered

#: Timelines printed for each kind of violation; all are in the report folder.
SHOWN = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run does. `submissions`, `seconds` or `faults` ends it, whichever comes first."""

    profile: str = "mixed"
    database: str = "sqlite"
    seed: int = 1
    submissions: int = 1_000_000
    seconds: float = 60
    faults: int = 1_000_000
    clients: int = 16
    lease_s: float = 1.0
    unit_s: float = 1.0  # what lengths of jobs and pauses are multiples of
    gap_s: float = 2.0
    workers: int = 8
    patience_s: float = 20.0  # without any progress, before what is unfinished counts as stuck
    replicas: int = 1  # on SQLite; several only with a launcher that takes the lock away
    roles: Sequence[str] = ("serve", "serve", "work", "work")  # on PostgreSQL
    launcher: Sequence[str] = SERVICE
    failpoints: Sequence[str] = ()  # of the first starts of the first member; the load ends when all are used
    mix: dict[str, float] | None = None
    cancels: float = 0.04
    hurt: Callable[[Member], bool] = lambda member: True  # the members that chaos may choose


@contextlib.contextmanager
def deployment_of(plan: Plan, folder: Path) -> Iterator[Deployment]:
    settings: dict[str, Any] = {
        "lease_s": plan.lease_s,
        "workers": plan.workers,
        "warm": plan.workers,
        "drain_s": 1,
        "retry_base_s": 0.2,
        "retry_cap_s": 1,
        "inline_blob_kb": 1,
        "log_format": "json",
        **RECEIVER_SETTINGS,
    }
    if plan.database == "sqlite":
        with (
            _disk(folder, wanted=plan.profile == "disk"),
            sqlite_deployment(folder, settings, launcher=plan.launcher, replicas=plan.replicas) as deployment,
        ):
            yield deployment
    else:
        with postgres_deployment(folder, settings, launcher=plan.launcher, roles=plan.roles) as deployment:
            yield deployment


@contextlib.contextmanager
def _disk(folder: Path, *, wanted: bool) -> Iterator[None]:
    """A small disk of its own for the data."""
    if not wanted:
        yield
        return
    (folder / "data").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder / "data")], capture_output=True, check=False
    )
    if mounted.returncode:
        raise SystemExit(f"Profile disk needs to mount a tmpfs: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder / "data")], check=True)


async def torture(plan: Plan, folder: Path, say: Callable[[str], None] = lambda line: None) -> Oracle:
    """Run `plan` in `folder`, which takes logs and data; the oracle's verdict."""
    history = History()
    async with contextlib.AsyncExitStack() as stack:
        deployment = stack.enter_context(deployment_of(plan, folder))
        first, *rest = deployment.members
        # One after the other, as migrations go.
        first.failpoints = list(plan.failpoints)
        first.start()
        await _ready(first)
        for member in rest:
            member.start()
        await asyncio.gather(*map(_ready, rest))
        receiver = await stack.enter_async_context(Receiver(plan.seed, deployment.urls).listening())
        load = Load(
            history,
            deployment.urls,
            str(deployment.log),
            seed=plan.seed,
            clients=plan.clients,
            submissions=plan.submissions,
            unit_s=plan.unit_s,
            mix=plan.mix,
            cancels=plan.cancels,
        )
        chaos = Chaos(
            deployment,
            history,
            profile=plan.profile,
            seed=plan.seed,
            unit_s=plan.unit_s,
            gap_s=plan.gap_s,
            members=plan.hurt,
        )
        loading, hurting = asyncio.create_task(load.run()), asyncio.create_task(chaos.run())
        ends = time.monotonic() + plan.seconds
        pause_s = 0.2 if plan.failpoints or plan.faults < 100 else 10
        while not loading.done() and time.monotonic() < ends and history.fault_counts.total() < plan.faults:
            await asyncio.wait([loading, hurting], timeout=min(pause_s, max(0, ends - time.monotonic())))
            if hurting.done():
                hurting.result()
            if len(first.exits) >= len(plan.failpoints) > 0:
                break
            say(f"{len(history.by_id)} acknowledged, {sum(history.fault_counts.values())} faults")
        load.stop()
        hurting.cancel()
        await asyncio.wait([hurting])
        await chaos.heal()
        supervising = asyncio.create_task(chaos.supervise())  # one may be about to end by itself
        await asyncio.gather(*(member.ready() for member in deployment.members))
        say("healed")
        await loading
        say("every submission has its answer")
        receiver.calm = True
        await _drained(deployment, plan, say)
        supervising.cancel()
        async with deployment.rows() as rows:
            ((events,),) = await rows.fetch("SELECT count(*) FROM job_events")
        await load.followers.end(events, plan.patience_s)
        await load.read_all()
        await _stop(deployment, history)
        history.stale_refused = sum(
            member.log.read_bytes().count(b"late outcome refused") for member in deployment.members
        )
        oracle = Oracle(deployment, history)
        await oracle.judge(receiver.judge)
        oracle.figures = {
            "seed": plan.seed,
            "profile": plan.profile,
            "database": plan.database,
            "processes": [member.name for member in deployment.members],
            **oracle.figures,
            **receiver.figures,
            "ended_by_themselves": {member.name: member.exits for member in deployment.members if member.exits},
        }
    _report(folder, history, oracle)
    return oracle


async def _ready(member: Member) -> None:
    if not await member.ready():
        raise SystemExit(f"{member.name} did not get ready; see {member.log}")


async def _drained(deployment: Deployment, plan: Plan, say: Callable[[str], None]) -> None:
    """Wait until nothing is unfinished, or nothing has changed for `patience_s`."""
    say("draining")
    before, since = None, time.monotonic()
    while time.monotonic() - since < plan.patience_s:
        async with deployment.rows() as rows:
            now = await rows.fetch(
                "SELECT (SELECT count(*) FROM jobs WHERE status IN ('PENDING', 'RUNNING')),"
                " (SELECT count(*) FROM job_attempts WHERE outcome IS NOT NULL),"
                " (SELECT count(*) FROM webhook_attempts)"
            )
            is_delivered = await all_delivered(rows)
        if now[0][0] == 0 and is_delivered:
            return
        if now != before:
            before, since = now, time.monotonic()
        await asyncio.sleep(0.2)


async def _stop(deployment: Deployment, history: History) -> None:
    """SIGTERM to all; each must end with exit code 0."""
    for member in deployment.members:
        member.is_wanted = False
        member.signal(signal.SIGTERM)
    for member in deployment.members:
        assert member.popen is not None
        try:
            code = await asyncio.to_thread(member.popen.wait, 30)
        except subprocess.TimeoutExpired:
            code = None
        if code != 0:
            history.surprises.append(("bad_exit", member.name, f"exit code {code} after SIGTERM at the end"))
            member.kill()


def _report(folder: Path, history: History, oracle: Oracle) -> None:
    with (folder / "faults.log").open("w") as log:
        for entry in history.faults:
            log.write(f"{entry.at:.3f} {entry.what}\n")
    (folder / "figures.json").write_text(json.dumps(oracle.figures) + "\n")
    with (folder / "violations.txt").open("w") as log:
        for violation in oracle.violations:
            log.write(f"{violation.kind} {violation.subject}: {violation.text}\n")
            log.writelines(f"    {line}\n" for line in oracle.timeline(violation.subject))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--profile", choices=sorted(PROFILES), default="mixed")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long to load and hurt it at most")
    parser.add_argument("--submissions", type=int, default=1_000_000, help="how many keys to submit at most")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--gap", type=float, default=2.0, help="seconds between two faults, on average")
    parser.add_argument("--folder", type=Path, help="where to leave data, logs and timelines; default: a new one")
    options = parser.parse_args(arguments)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="torture-"))
    folder.mkdir(parents=True, exist_ok=True)
    plan = Plan(
        profile=options.profile,
        database=options.database,
        seed=options.seed,
        seconds=options.minutes * 60,
        submissions=options.submissions,
        clients=options.clients,
        gap_s=options.gap,
    )
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - started:7.1f} s  {line}", file=sys.stderr, flush=True)

    say(f"in {folder}")
    oracle = asyncio.run(torture(plan, folder, say))
    shown: dict[str, int] = {}
    for violation in oracle.violations:
        shown[violation.kind] = shown.get(violation.kind, 0) + 1
        if shown[violation.kind] <= SHOWN:
            print(f"{violation.kind} {violation.subject}: {violation.text}", file=sys.stderr)
            print(*oracle.timeline(violation.subject), sep="\n", file=sys.stderr)
    print(json.dumps({**oracle.figures, "seconds": round(time.monotonic() - started, 1)}))
    return 1 if oracle.violations else 0
