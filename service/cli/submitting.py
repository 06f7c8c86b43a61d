"""The command `submit`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from service.cli.failures import Exit, UsageError
from service.cli.following import followed, show_result
from service.cli.inputs import STDIO, json_object, pair, read_input
from service.cli.output import put
from service.cli.parameters import MANY, Output, Service, Wait
from service.client import media_type_of
from service.models import JobOptions, Timestamp


async def submit(
    file: Annotated[Path | None, Parameter(name="FILE", allow_leading_hyphen=True)] = None,
    /,
    *,
    plugin: Annotated[str, Parameter(name=("--plugin", "-p"))],
    field: Annotated[tuple[str, ...], MANY, Parameter(name=("--field", "-f"))] = (),
    payload: str | None = None,
    mime_type: str | None = None,
    priority: int = 0,
    tag: Annotated[tuple[str, ...], MANY] = (),
    metadata: str | None = None,
    timeout_s: float | None = None,
    max_attempts: int | None = None,
    run_at: str | None = None,
    expires_at: str | None = None,
    idempotency_key: str | None = None,
    wait: Wait = False,
    output: Output = None,
    service: Service = Service(),
) -> Exit:
    """Send a job. Prints its id; with --wait its result.

    Args:
        file: The picture, or any file that the plugin takes; `-` is standard input; a .json file is the whole payload.
        plugin: Plugin to run; `jobservice plugins` lists them.
        field: Further field of the payload, as NAME=VALUE; may be repeated.
        payload: The whole payload as JSON, instead of FILE and fields.
        mime_type: What FILE is, if neither its name nor its first bytes tell.
        priority: -100 to 100; higher starts earlier.
        tag: Label to find the job by; may be repeated.
        metadata: Your own data, a JSON object.
        timeout_s: Limit of its execution in seconds, if lower than the plugin's.
        max_attempts: How often it may be tried, 1 to 100; default: what the plugin says, or 1.
        run_at: The job may not start before, as 2026-01-31T12:00:00Z.
        expires_at: The job may not start after.
        idempotency_key: The same key never makes a second job.
    """
    if output and not wait:
        raise UsageError("--output needs --wait: there is no result before the job has ended.")
    if file and str(file).startswith("-") and file != STDIO:
        raise UsageError(f"Unknown option: {file}. See: jobservice submit --help")
    fields = dict(pair(text) for text in field)
    whole = json_object("--payload", payload) if payload is not None else None
    data = None if file is None else await asyncio.to_thread(read_input, file)
    if whole is not None and file:
        raise UsageError("FILE and --payload are two ways to say the same: give one of them.")
    if data is not None and file and file.suffix == ".json" and mime_type is None:
        whole, data = json_object(str(file), data), None
    if whole is not None and fields:
        raise UsageError("--field goes with a FILE that is not JSON: put the fields into the JSON payload.")
    options = JobOptions(
        priority=priority,
        tags=tag,
        metadata={} if metadata is None else json_object("--metadata", metadata),
        timeout_s=timeout_s,
        max_attempts=max_attempts,
        run_at=None if run_at is None else Timestamp(run_at),
        expires_at=None if expires_at is None else Timestamp(expires_at),
    )
    async with service.client() as client:
        if whole is not None:
            job = await client.submit(plugin, whole, options=options, idempotency_key=idempotency_key)
        else:
            media_type = mime_type or media_type_of(str(file), data or b"")
            job = await client.submit_file(
                plugin, data, media_type=media_type, fields=fields, options=options, idempotency_key=idempotency_key
            )
        if not wait:
            put(job.document if service.json else job.id)
            return Exit.OK
        return await show_result(client, await followed(client, job.id), output, as_json=service.json)
