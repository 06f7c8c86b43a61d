"""What holds the jobs of a plugin back, beside those before them, in words."""

from __future__ import annotations

from http import HTTPStatus

from service.client import ApiError, Client, Job, Plugin
from service.models import JobStatus, timestamp


def restraint(plugin: Plugin) -> str:
    """What operators have set for `plugin`, as what it is: paused, limited; empty for nothing."""
    control = plugin.document["control"]
    limits = [f"{control['concurrency']} at once"] if control["concurrency"] is not None else []
    if control["rate_per_s"] is not None:
        limits.append(f"{control['rate_per_s']:g} a second")
    parts = []
    if control["paused"]:
        intake = " and takes no new jobs" if control["intake"] else ""
        parts.append(f"paused{intake}" + (f" ({control['reason']})" if control["reason"] else ""))
    if limits:
        parts.append(f"limited to {' and '.join(limits)}")
    return ", ".join(parts)


async def what_holds(client: Client, job: Job) -> str:
    """Why nobody can say when `job` starts; empty where nothing but its turn or its time holds it back."""
    told = job.document
    if job.status is not JobStatus.PENDING or told["eta_s"] is not None or told["run_at"] > timestamp():
        return ""
    try:
        held = restraint(await client.plugin(job.plugin))
    except ApiError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        held = "not installed here"
    return f"plugin {job.plugin} is {held}" if held else ""
