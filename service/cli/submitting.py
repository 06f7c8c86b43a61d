"""The command `submit`: one file, or every file of a folder."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from service.cli import inputs
from service.cli.failures import Exit, UsageError
from service.cli.folder_runs import submit_folder
from service.cli.folders import Folder
from service.cli.following import show_submitted
from service.cli.inputs import Input, Order, json_object, pairs
from service.cli.parameters import MANY, Service, Wait
from service.cli.targets import check_file, check_folder
from service.models import JobOptions, Timestamp


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FolderOptions:
    """What only a folder needs."""

    recursive: Annotated[
        bool,
        Parameter(
            name=("--recursive", "-r"),
            negative=(),
            show_default=False,
            help="FILE is a folder: the files of its folders too",
        ),
    ] = False
    match: Annotated[
        tuple[str, ...],
        MANY,
        Parameter(help="FILE is a folder: only files whose path ends like this, as '*.png'; may be repeated"),
    ] = ()
    run_name: Annotated[
        str,
        Parameter(
            name="--run",
            show_default=False,
            help="FILE is a folder: name of this run; another one makes new jobs of its files",
        ),
    ] = ""
    patience_s: Annotated[
        float, Parameter(help="FILE is a folder: seconds to wait for a service that went away, each time anew")
    ] = 300.0


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
    folder: FolderOptions = FolderOptions(),
    wait: Wait = False,
    output: Annotated[
        Path | None,
        Parameter(name=("--output", "-o"), help="Write the result to this file; those of a folder into this folder"),
    ] = None,
    service: Service = Service(),
) -> Exit:
    """Send a job, or a job for each file of a folder. Prints ids; with --wait the result, or what became of each file.

    Args:
        file: The picture, or any file that the plugin takes; `-` is standard input; a .json file is the whole payload; a folder stands for its files.
        plugin: Plugin to run; `jobservice plugins` lists them.
        field: Further field of the payload, as NAME=VALUE; may be repeated.
        payload: The whole payload as JSON, instead of FILE and fields.
        mime_type: What FILE is, as image/png; default: what its first bytes tell, else its name.
        priority: -100 to 100; higher starts earlier.
        tag: Label to find the job by; may be repeated.
        metadata: Your own data, a JSON object.
        timeout_s: Limit of its execution in seconds, if lower than the plugin's.
        max_attempts: How often it may be tried, 1 to 100; default: what the plugin says, or 1.
        run_at: The job may not start before, as 2026-01-31T12:00:00Z.
        expires_at: The job may not start after.
        idempotency_key: The same key never makes a second job.
    """  # noqa: E501 (a line is a paragraph of the help)
    if output and not wait:
        raise UsageError("--output needs --wait: there is no result before the job has ended.")
    if payload is not None and file:
        raise UsageError("FILE and --payload are two ways to say the same: give one of them.")
    order = Order(
        plugin=plugin,
        fields=pairs(field),
        mime_type=mime_type,
        options=JobOptions(
            priority=priority,
            tags=tag,
            metadata={} if metadata is None else json_object("--metadata", metadata),
            timeout_s=timeout_s,
            max_attempts=max_attempts,
            run_at=None if run_at is None else Timestamp(run_at),
            expires_at=None if expires_at is None else Timestamp(expires_at),
        ),
    )
    is_folder = await asyncio.to_thread(os.path.isdir, file) if file else False
    await asyncio.to_thread(check_folder if is_folder else check_file, output)
    if file and is_folder:
        if idempotency_key is not None:
            raise UsageError("--idempotency-key is for one job: name the run of a folder with --run.")
        wanted = Folder(file, folder.recursive, folder.match, folder.run_name)
        return await submit_folder(service, wanted, order, folder.patience_s, wait=wait, output=output)
    if folder != FolderOptions():
        raise UsageError("--recursive, --match, --run and --patience-s go with a folder.")
    given: Input | None = None
    if payload is not None:
        if order.fields:
            raise UsageError("--field goes with a FILE that is not JSON: put the fields into the JSON payload.")
        given = Input(None, "", json_object("--payload", payload))
    elif file:
        given = await asyncio.to_thread(inputs.read, file, order)
    async with service.client() as client:
        job = await inputs.send(client, order, given, idempotency_key)
        return await show_submitted(client, job, output, wait=wait, as_json=service.json)
