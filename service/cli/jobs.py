"""The commands on jobs: `jobs`, `show`, `result`, `cancel`, `retry`."""

from __future__ import annotations

import asyncio
from datetime import datetime

from cyclopts.types import PositiveInt
from rich.table import Table
from rich.text import Text

from service.cli.failures import Exit, UsageError
from service.cli.following import followed, outcome_of, remark, show_result, show_submitted
from service.cli.holding import what_holds
from service.cli.output import coloured, moment, pretty, print_table, put, safe, sheet, table_of
from service.cli.parameters import JobId, Output, Service, Wait
from service.cli.targets import check_file
from service.client import Job
from service.models import JobStatus, Timestamp, timestamp


async def jobs(
    *,
    status: JobStatus | None = None,
    plugin: str | None = None,
    tag: str | None = None,
    error_type: str | None = None,
    limit: PositiveInt = 20,
    service: Service = Service(),
) -> None:
    """List jobs, newest first.

    Args:
        status: Only jobs in this status.
        plugin: Only jobs of this plugin.
        tag: Only jobs with this tag.
        error_type: Only jobs that failed with this type of error.
        limit: At most so many.
    """
    async with service.client() as client:
        listing = client.jobs(status=status, plugin=plugin, tag=tag, error_type=error_type, limit=limit)
        found = [job async for job in listing]
    if service.json:
        put([job.document for job in found])
        return
    table = table_of("id", "plugin", "status", "created (UTC)", "took", "what")
    for job in found:
        table.add_row(
            job.id, safe(job.plugin), coloured(job.status), moment(job.created_at), _took(job), safe(remark(job))
        )
    print_table(table)


async def show(job_id: JobId, /, *, wait: Wait = False, service: Service = Service()) -> Exit:
    """Show everything about one job; with --wait once it has ended."""
    async with service.client() as client:
        job = await (followed(client, job_id) if wait else client.get(job_id))
        held = "" if service.json else await what_holds(client, job)
    if service.json:
        put(job.document)
    else:
        print_table(_details(job, held))
    return outcome_of(job) if wait else Exit.OK


async def result(job_id: JobId, /, *, output: Output = None, wait: Wait = False, service: Service = Service()) -> Exit:
    """Print the result of a job, or write it to a file; bytes as they are, everything else as JSON."""
    await asyncio.to_thread(check_file, output)
    async with service.client() as client:
        job = await (followed(client, job_id) if wait else client.get(job_id))
        if not job.status.is_terminal:
            raise UsageError(f"Job {job.id} is {job.status}: it has no result yet. Wait for it: --wait.")
        return await show_result(client, job, output, as_json=service.json)


async def cancel(job_id: JobId, /, *, service: Service = Service()) -> None:
    """Cancel a job: at once if it waits, as soon as its worker is stopped if it runs."""
    async with service.client() as client:
        job = await client.cancel(job_id)
    if service.json:
        put(job.document)
    elif job.status is JobStatus.CANCELLED:
        put(f"Job {job.id} is CANCELLED.")
    else:
        put(f"Job {job.id} is being stopped; see `jobservice show {job.id} --wait`.")


async def retry(job_id: JobId, /, *, wait: Wait = False, output: Output = None, service: Service = Service()) -> Exit:
    """Make a new job of one that has ended, and print its id; with --wait its result."""
    if output and not wait:
        raise UsageError("--output needs --wait: there is no result before the job has ended.")
    await asyncio.to_thread(check_file, output)
    async with service.client() as client:
        return await show_submitted(client, await client.retry(job_id), output, wait=wait, as_json=service.json)


def _details(job: Job, held: str) -> Table:
    attempt = f"{job.attempt} of {job.max_attempts}"
    rows: list[tuple[str, str | Text]] = [
        ("id", job.id),
        ("plugin", f"{job.plugin} {job.plugin_version or ''}"),
        ("status", coloured(job.status)),
        ("error" if job.error else "progress", remark(job)),
        ("attempt", attempt if job.attempt else ""),
        ("tags", ", ".join(job.tags)),
        ("created", moment(job.created_at)),
        ("waits", _waits(job, held)),
        ("expires", moment(job.document.get("expires_at")) if job.status is JobStatus.PENDING else ""),
        ("started", moment(job.started_at)),
        ("finished", f"{moment(job.finished_at)} {_took(job) and f'(took {_took(job)})'}"),
        ("payload", pretty(job.payload)),
        ("result", "" if job.result is None else pretty(job.result)),
        ("files", "\n".join(f"{name}  {path}" for name, path in job.artifacts.items())),
    ]
    return sheet(rows)


def _waits(job: Job, held: str) -> str:
    """What a job waits for that has not started."""
    told = job.document
    if job.status is not JobStatus.PENDING:
        return ""
    if told["run_at"] > timestamp():
        return f"until {moment(told['run_at'])}"
    others = "" if told["queue_position"] is None else f"for {told['queue_position']} others"
    eta = "" if told["eta_s"] is None else f"about {told['eta_s']:.0f} s"
    return ", ".join(filter(None, (others, held or eta)))


def _took(job: Job) -> str:
    if not job.started_at or not job.finished_at:
        return ""
    return f"{_seconds(job.finished_at) - _seconds(job.started_at):.1f} s"


def _seconds(at: Timestamp) -> float:
    return datetime.fromisoformat(at).timestamp()
