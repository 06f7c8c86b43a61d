"""A whole folder through the service: each file one job, however often the service or this command dies in between."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from service.cli import inputs
from service.cli.failures import Exit, UsageError
from service.cli.folders import Folder, key_of
from service.cli.following import BUSY, Trouble, outcome_of, remark, why_not_followed
from service.cli.inputs import Input, Order
from service.cli.output import coloured, print_table, put, safe, say, table_of
from service.cli.parameters import Service
from service.cli.targets import write_whole
from service.client import ApiError, Client, File, Job, ServiceUnreachableError
from service.file_endings import ending_of
from service.models import JobStatus

_AT_ONCE: Final = 8  # files read and sent
_TOLD: Final = 20  # refusals told one by one
#: Refusals that are about the file; any other one would meet every file.
_OF_THE_FILE: Final = frozenset({400, 413, 415, 422})
#: Refusals that are about the result of one job: its bytes, or all of it, are not kept any more.
_OF_THE_RESULT: Final = frozenset({404, 410})


@dataclasses.dataclass(slots=True)
class Outcome:
    """What became of a file: a job, or a refusal; both where the job's result could not be had or written."""

    name: str
    job: Job | None = None
    refusal: ApiError | UsageError | None = None
    written: Path | None = None

    @property
    def state(self) -> str:
        """The status of the job; `refused` where there is none, `deleted` where there is none any more."""
        if self.job is None:
            return "refused"
        return self.job.status if self.refusal is None or self.job.status.is_terminal else "deleted"


async def submit_folder(
    service: Service, folder: Folder, order: Order, patience_s: float, *, wait: bool, output: Path | None
) -> Exit:
    """Send every file, wait for the jobs if asked to, and tell what became of each.

    Raises `UsageError` when there is no file, `ServiceUnreachableError` when the service stays away, `ApiError` for a
    refusal that is not about a file.
    """
    names = await asyncio.to_thread(folder.names, output)
    if not names:
        raise UsageError(f"There is no file {folder.what}.")
    outcomes = [Outcome(name) for name in names]
    try:
        async with service.client(patience_s=patience_s, on_trouble=Trouble(patience_s)) as client:
            with _bar() as bar:
                await _send_all(client, folder, order, outcomes, bar)
                if wait:
                    await _collect(client, outcomes, output, bar)
    except (asyncio.CancelledError, ServiceUnreachableError):
        sent = sum(outcome.job is not None for outcome in outcomes)
        if sent:
            say(f"{sent} of {len(names)} files are with the service, which keeps them. The same command goes on here.")
        raise
    except ApiError as error:
        if made := [outcome for outcome in outcomes if outcome.job]:
            _tell(made, waited=False, as_json=service.json)
            sys.stdout.flush()
            say(f"{len(made)} of {len(names)} jobs were made and go on, but {why_not_followed(error, 'them')}")
        raise
    return _tell(outcomes, waited=wait, as_json=service.json)


async def _send_all(client: Client, folder: Folder, order: Order, outcomes: Sequence[Outcome], bar: Progress) -> None:
    task = bar.add_task("sent", total=len(outcomes), note="")
    left = iter(outcomes)
    refused = 0

    async def send_some() -> None:
        nonlocal refused
        for outcome in left:
            try:
                outcome.job = await _send(client, folder, order, outcome.name)
            except (ApiError, UsageError) as error:
                if isinstance(error, ApiError) and error.status not in _OF_THE_FILE:
                    raise
                refused += 1
                _refuse(outcome, error, refused)
                bar.update(task, note=f"{refused} refused")
            bar.advance(task)

    senders = [asyncio.ensure_future(send_some()) for _ in range(_AT_ONCE)]
    try:
        await asyncio.gather(*senders)
    finally:
        for sender in senders:
            sender.cancel()


async def _send(client: Client, folder: Folder, order: Order, name: str) -> Job:
    given = await asyncio.to_thread(_read, folder.place / name, order)
    key = await asyncio.to_thread(key_of, folder, order, name, given)
    while True:
        try:
            return await inputs.send(client, order, given, key)
        except ApiError as error:
            # A service without room has not gone away: there will be some. Who does not say when is none.
            if error.status != BUSY or error.retry_after_s is None:
                raise


def _read(path: Path, order: Order) -> Input:
    # A pipe would never end; a link that leads nowhere is told by who reads it.
    if path.exists() and not path.is_file():
        raise UsageError(f"Cannot read {path}: it is no file.")
    return inputs.read(path, order)


async def _collect(client: Client, outcomes: Sequence[Outcome], output: Path | None, bar: Progress) -> None:
    unseen = {outcome.job.id: outcome for outcome in outcomes if outcome.job}
    task = bar.add_task("done", total=len(unseen), note="")
    failed = unwritten = 0
    try:
        async with contextlib.aclosing(client.results(list(unseen))) as results:
            async for job in results:
                outcome = unseen.pop(job.id)
                outcome.job = job
                if job.status is not JobStatus.SUCCESS:
                    failed += 1
                elif output is not None:
                    try:
                        outcome.written = await _written(client, job, output / outcome.name)
                    except (ApiError, UsageError) as error:
                        if isinstance(error, ApiError) and error.status not in _OF_THE_RESULT:
                            raise
                        unwritten += 1
                        _refuse(outcome, error, unwritten)
                bar.update(task, advance=1, note=f"{failed} failed" if failed else "")
    except ApiError as error:
        # What ends this way has given all other jobs.
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        for job_id, outcome in unseen.items():
            unwritten += 1
            _refuse(outcome, UsageError(f"Job {job_id} was deleted before its end was seen."), unwritten)


def _refuse(outcome: Outcome, error: ApiError | UsageError, count: int) -> None:
    outcome.refusal = error
    if count <= _TOLD:
        say(f"{outcome.name}: {error}", style="red")


async def _written(client: Client, job: Job, place: Path) -> Path:
    """The file with the result: named like the input, and by what it is."""
    found = await client.result(job.id)
    if isinstance(found, File):
        data, suffix = found.data, ending_of(found.media_type)
    else:
        data, suffix = (json.dumps(found, ensure_ascii=False, indent=2) + "\n").encode(), ".json"
    path = place.with_name(place.name + suffix)
    try:
        await asyncio.to_thread(_write, path, data)
    except OSError as error:
        raise UsageError(
            f"Cannot write {path}: {(error.strerror or str(error)).lower()}. The service keeps the results."
        ) from error
    return path


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, data)


def _tell(outcomes: Sequence[Outcome], *, waited: bool, as_json: bool) -> Exit:
    if as_json:
        put([_document(outcome) for outcome in outcomes])
    else:
        table = table_of("file", "id", "status", "what")
        for outcome in outcomes:
            job = outcome.job
            what = str(outcome.refusal) if outcome.refusal else remark(job) if job else ""
            table.add_row(
                safe(outcome.name), job.id if job else "", coloured(outcome.state),
                safe(str(outcome.written) if outcome.written else what),
            )  # fmt: skip
        print_table(table)
    counts = Counter(outcome.state for outcome in outcomes)
    unwritten = sum(outcome.job is not None and outcome.refusal is not None for outcome in outcomes)
    if waited or counts["refused"]:
        sys.stdout.flush()
        parts = [f"{count} {status}" for status, count in sorted(counts.items())]
        parts += [f"{unwritten} without their result"] if unwritten else []
        say(f"{len(outcomes)} files: {', '.join(parts)}.")
    if counts["refused"] or unwritten:
        return Exit.USAGE
    return max((outcome_of(outcome.job) for outcome in outcomes if outcome.job), default=Exit.OK) if waited else Exit.OK


def _document(outcome: Outcome) -> dict[str, object]:
    refusal = outcome.refusal
    return {
        "file": outcome.name,
        "job": outcome.job and outcome.job.document,
        "refusal": None if refusal is None else {"message": str(refusal), "problem": getattr(refusal, "problem", None)},
        "output": None if outcome.written is None else str(outcome.written),
    }


@contextlib.contextmanager
def _bar() -> Iterator[Progress]:
    """A progress bar where stderr is a terminal."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False, style="red"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        yield bar
