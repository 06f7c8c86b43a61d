"""The command `watch`: what happens to a job, or to all of them, as it happens."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Annotated, Final

from cyclopts import Parameter

from service.cli.failures import Exit, UsageError
from service.cli.following import Trouble, outcome_of
from service.cli.output import clean, moment, put
from service.cli.parameters import MANY, Service
from service.client import Event
from service.models import EventType

_PATIENCE_S: Final = 300.0


async def watch(
    job_id: Annotated[str | None, Parameter(name="ID")] = None,
    /,
    *,
    plugin: Annotated[str | None, Parameter(name=("--plugin", "-p"))] = None,
    type: Annotated[tuple[EventType, ...], MANY] = (),
    after: str | None = None,
    service: Service = Service(),
) -> Exit:
    """Print what happens to a job, from its beginning to its end; without ID what happens to all jobs from now on.

    Args:
        plugin: Without ID: only jobs of this plugin.
        type: Without ID: only events of this type; may be repeated.
        after: Only what came after this event: its number, or without ID its id; `0-0` is the beginning.
    """
    if job_id is not None and (plugin is not None or type):
        raise UsageError("--plugin and --type are for all jobs: leave ID out.")
    async with service.client(patience_s=_PATIENCE_S, on_trouble=Trouble(_PATIENCE_S)) as client:
        if job_id is None:
            events = client.stream_all(plugin=plugin, types=type, after=after)
        else:
            events = client.stream(job_id, after=_number(after))
        async with contextlib.aclosing(events):
            async for event in events:
                put({"id": event.id, **event.document} if service.json else _line(event, with_job=job_id is None))
                sys.stdout.flush()
        # Only the stream of one job comes to an end.
        return Exit.OK if job_id is None else outcome_of(await client.get(job_id))


def _number(after: str | None) -> int:
    if after is None:
        return 0
    if not (after.isascii() and after.isdecimal()):
        raise UsageError(f"--after {after}: the events of a job have numbers, from 1 on.")
    return int(after)


def _line(event: Event, *, with_job: bool) -> str:
    job = f"{event.job_id}  {event.plugin}  " if with_job else ""
    return clean(f"{moment(event.at)}  {job}{event.type}  {_what(event)}".rstrip())


def _what(event: Event) -> str:
    """What an event says beside its type, in one line."""
    data = event.data
    if "fraction" in data:
        return f"{data['fraction']:.0%} {data.get('message') or ''}"
    return json.dumps(data, ensure_ascii=False) if data else ""
