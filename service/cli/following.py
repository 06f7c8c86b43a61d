"""Jobs on their way: waited for with a progress bar, and what came of them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from service.cli.failures import Exit, UsageError
from service.cli.output import laid_out, pretty, put, safe, say
from service.cli.targets import write_whole
from service.client import ApiError, Client, Failure, File, Job, ServiceUnreachableError
from service.errors import raised
from service.models import JSON, JobStatus

#: The answer of a service that has no room, but is well.
BUSY: Final = 429
#: Where an exception was raised that was not raised in `run`, by the phase in the details of its error.
_PLACES: Final[Mapping[JSON, str]] = {"import": " on loading", "setup": " in set-up"}


class Trouble:
    """Tells that the service is away, and that it is back, once each time."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._is_away = False
        self._was_busy = False

    def __call__(self, failure: Failure | None) -> None:
        """Hear what `Client` says: a failure after which it tries again, or None once it is over."""
        if failure is None:
            if self._is_away:
                say("The service answers again.")
            self._is_away = False
        elif isinstance(failure, ApiError) and failure.status == BUSY:
            if not self._was_busy:
                say(f"The service has no room for more now: {str(failure).rstrip('.')}. Waiting for it.")
            self._was_busy = True
        elif not self._is_away:
            self._is_away = True
            say(f"{str(failure).rstrip('.')}. Waiting up to {self._patience_s:g} s for it to come back.")


async def followed(client: Client, job_id: str) -> Job:
    """The job once it has ended, with a progress bar until then where stderr is a terminal."""
    console = Console(stderr=True)
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task(job_id, total=None, note="")

    def watch(job: Job) -> None:
        progress = job.progress
        bar.update(
            task,
            description=f"{safe(job.plugin)} {job.status}",
            total=1.0 if progress else None,
            completed=progress.fraction if progress else 0,
            note=safe(progress.message) if progress else "",
        )

    try:
        with bar:
            return await client.wait(job_id, watch)
    except asyncio.CancelledError:
        say(f"Stopped waiting; job {job_id} goes on. Follow it: jobservice show {job_id} --wait")
        raise
    except ServiceUnreachableError:
        say(f"Lost sight of job {job_id}; the service keeps it. Follow it later: jobservice show {job_id} --wait")
        raise


async def show_submitted(client: Client, job: Job, output: Path | None, *, wait: bool, as_json: bool) -> Exit:
    """Print the id of a new job or, if asked to wait, its result."""
    if wait:
        try:
            job = await followed(client, job.id)
        except ApiError as error:
            say(f"Job {job.id} was made and goes on, but {why_not_followed(error)}")
            raise
        return await show_result(client, job, output, as_json=as_json)
    put(job.document if as_json else job.id)
    return Exit.OK


def why_not_followed(error: ApiError, what: str = "it") -> str:
    """What a refusal to follow jobs that were made means, as the end of a sentence."""
    if error.status == HTTPStatus.FORBIDDEN:
        return f"this key may not follow {what}: that takes the role read."
    return f"what becomes of {what} was not told."


async def show_result(client: Client, job: Job, output: Path | None, *, as_json: bool) -> Exit:
    """Print or write the result of a job that has ended, or say why there is none."""
    if job.status is not JobStatus.SUCCESS:
        if as_json:
            put(job.document)
        say(f"jobservice: Job {job.id} is {job.status}" + (f": {remark(job)}" if job.error else "."), style="red")
        return outcome_of(job)
    if as_json and output is None:
        put(job.document)
        return Exit.OK
    found = await client.result(job.id)
    data = found.data if isinstance(found, File) else (laid_out(found) + "\n").encode()
    if output is not None:
        await _write(output, data, job)
        if as_json:
            put(job.document)
        else:
            say(f"Wrote {output} ({len(data):,} bytes).")
    elif not sys.stdout.isatty():
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
    elif isinstance(found, File):
        raise UsageError(f"The result is a file ({found.media_type}, {len(data):,} bytes): name one with --output.")
    else:
        put(pretty(found))
    return Exit.OK


async def _write(output: Path, data: bytes, job: Job) -> None:
    try:
        await asyncio.to_thread(write_whole, output, data)
    except OSError as error:
        raise UsageError(
            f"Cannot write {output}: {(error.strerror or str(error)).lower()}. "
            f"The service keeps the result: jobservice result {job.id} --output FILE"
        ) from error


def outcome_of(job: Job) -> Exit:
    """The exit code that tells how a job has ended."""
    return Exit.OK if job.status is JobStatus.SUCCESS else Exit.FAILED


def remark(job: Job) -> str:
    """The one line that says most about where a job is."""
    if job.error:
        return _fault(job.error)
    if job.progress and not job.status.is_terminal:
        return f"{job.progress.fraction:.0%} {job.progress.message}".rstrip()
    return ""


def _fault(error: Mapping[str, JSON]) -> str:
    """What failed a job: the type, and what was raised where, if something was."""
    exception = error["details"].get("exception")
    place = _PLACES.get(error["details"].get("phase"), "") if exception else ""
    return f"{error['type']}{place}: {raised(error['message'], exception)}"
