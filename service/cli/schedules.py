"""The commands `schedules`."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import App, Parameter
from rich.table import Table

from service.cli.failures import UsageError
from service.cli.inputs import json_object
from service.cli.output import coloured, moment, pretty, print_table, put, safe, sheet, table_of
from service.cli.parameters import MANY, Service
from service.client import Client, NewSchedule, Schedule

schedules = App(name="schedules", help="Jobs made by the clock: each so many seconds, or by cron.")

_Named = Annotated[str, Parameter(name="NAME")]


@schedules.command(name="list")
async def list_schedules(*, service: Service = Service()) -> None:
    """List the schedules by name."""
    async with service.client() as client:
        found = await client.schedules.list()
    if service.json:
        put([schedule.document for schedule in found])
        return
    table = table_of("name", "plugin", "when", "state", "next (UTC)", "last (UTC)", "last job")
    for schedule in found:
        table.add_row(
            safe(schedule.name), safe(schedule.plugin), safe(_when(schedule)), coloured(_state(schedule)),
            moment(schedule.next_at), moment(schedule.last_at), schedule.last_job_id or "",
        )  # fmt: skip
    print_table(table)


@schedules.command(name="show")
async def show_schedule(name: _Named, /, *, service: Service = Service()) -> None:
    """Show everything about a schedule."""
    async with service.client() as client:
        _print(service, await client.schedules.get(await _id_of(client, name)))


@schedules.command(name="create")
async def create_schedule(
    name: _Named,
    /,
    *,
    plugin: Annotated[str, Parameter(name=("--plugin", "-p"))],
    cron: str | None = None,
    every_s: int | None = None,
    payload: str = "{}",
    timezone: str | None = None,
    misfire: Literal["once", "skip", "all"] | None = None,
    starts_at: str | None = None,
    ends_at: str | None = None,
    priority: int | None = None,
    tag: Annotated[tuple[str, ...], MANY] = (),
    metadata: str | None = None,
    timeout_s: float | None = None,
    max_attempts: int | None = None,
    expires_after_s: float | None = None,
    service: Service = Service(),
) -> None:
    """Make a schedule.

    Args:
        name: Its name; no two schedules have the same.
        plugin: Plugin to run; `jobservice plugins` lists them.
        cron: When, as '30 2 * * MON-FRI'.
        every_s: Or: each so many seconds.
        payload: The input of each job, as JSON.
        timezone: Whose clock --cron reads, as Europe/Berlin; default: UTC.
        misfire: What becomes of times at which no service ran; default: one job for all of them.
        starts_at: No job is made before, as 2026-01-31T12:00:00Z.
        ends_at: No job is made after.
        priority: -100 to 100; higher starts earlier.
        tag: Label to find the jobs by; may be repeated.
        metadata: Your own data, a JSON object.
        timeout_s: Limit of an execution in seconds, if lower than the plugin's.
        max_attempts: How often a job may be tried, 1 to 100; default: what the plugin says, or 1.
        expires_after_s: A job that waits longer than this does not start any more.
    """
    if (cron is None) == (every_s is None):
        raise UsageError("Say when, with either --cron or --every-s.")
    options = {
        "priority": priority,
        "tags": list(tag) or None,
        "metadata": None if metadata is None else json_object("--metadata", metadata),
        "timeout_s": timeout_s,
        "max_attempts": max_attempts,
        "expires_after_s": expires_after_s,
    }
    wanted = NewSchedule(
        name=name,
        plugin=plugin,
        payload=json_object("--payload", payload),
        cron=cron,
        every_s=every_s,
        timezone=timezone,
        misfire=misfire,
        starts_at=starts_at,
        ends_at=ends_at,
        options={name: value for name, value in options.items() if value is not None} or None,
    )
    async with service.client() as client:
        schedule = await client.schedules.create(wanted)
    put(schedule.document if service.json else schedule.id)


@schedules.command(name="pause")
async def pause_schedule(name: _Named, /, *, service: Service = Service()) -> None:
    """Let a schedule make no jobs for now."""
    async with service.client() as client:
        schedule = await client.schedules.pause(await _id_of(client, name))
    put(schedule.document if service.json else f"The schedule {name} is paused.")


@schedules.command(name="resume")
async def resume_schedule(name: _Named, /, *, service: Service = Service()) -> None:
    """Let a schedule make jobs again."""
    async with service.client() as client:
        schedule = await client.schedules.resume(await _id_of(client, name))
    when = f"makes jobs again, next at {schedule.next_at}" if schedule.next_at else "is not paused, but has ended"
    put(schedule.document if service.json else f"The schedule {name} {when}.")


@schedules.command(name="run")
async def run_schedule(name: _Named, /, *, service: Service = Service()) -> None:
    """Make one job of a schedule now, and print its id."""
    async with service.client() as client:
        job = await client.schedules.run_now(await _id_of(client, name))
    put(job.document if service.json else job.id)


@schedules.command(name="delete")
async def delete_schedule(name: _Named, /, *, service: Service = Service()) -> None:
    """Forget a schedule; the jobs that it made stay."""
    async with service.client() as client:
        schedule_id = await _id_of(client, name)
        await client.schedules.delete(schedule_id)
    put({"id": schedule_id, "deleted": True} if service.json else f"The schedule {name} is deleted.")


async def _id_of(client: Client, name: str) -> str:
    """The id of the schedule of this name or id."""
    found = [schedule.id for schedule in await client.schedules.list() if name in (schedule.name, schedule.id)]
    if not found:
        raise UsageError(f"There is no schedule {name!r}. See: jobservice schedules list")
    return found[0]


def _print(service: Service, schedule: Schedule) -> None:
    if service.json:
        put(schedule.document)
    else:
        print_table(_details(schedule))


def _details(schedule: Schedule) -> Table:
    return sheet(
        [
            ("id", schedule.id),
            ("name", schedule.name),
            ("plugin", schedule.plugin),
            ("when", _when(schedule)),
            ("missed", schedule.misfire),
            ("state", coloured(_state(schedule))),
            ("next", moment(schedule.next_at)),
            ("last", moment(schedule.last_at)),
            ("last job", schedule.last_job_id or ""),
            ("payload", pretty(schedule.payload)),
            ("options", pretty(schedule.options)),
        ]
    )


def _when(schedule: Schedule) -> str:
    return f"{schedule.cron} {schedule.timezone}" if schedule.cron else f"every {schedule.every_s} s"


def _state(schedule: Schedule) -> str:
    return "paused" if schedule.paused else "active" if schedule.next_at else "ended"
