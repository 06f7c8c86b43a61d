"""What handlers work with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

from service.api.access import Gate
from service.api.ended_jobs import EndedJobs
from service.api.open_streams import OpenStreams
from service.api.resources import Resource
from service.control_management import PluginControlService
from service.following import FollowingService
from service.job_actions import JobActions
from service.job_batches import JobBatches
from service.job_management import JobManagementService
from service.metrics import Metrics
from service.plugin_management import PluginManagementService
from service.reports import ReportService
from service.schedule_management import ScheduleManagementService
from service.webhook_management import WebhookManagementService


class Health(Protocol):
    """How the process is."""

    @property
    def draining(self) -> bool:
        """True once no new work is taken."""
        ...

    @property
    def warnings(self) -> Sequence[str]:
        """What people should know although the process can serve."""
        ...

    async def readiness(self) -> list[str]:
        """Why the process cannot serve now; empty when it can."""
        ...


class Description(Protocol):
    """The OpenAPI document of the API, for two kinds of readers."""

    async def of_routes(self) -> Resource:
        """For everybody: it names no plugin."""
        ...

    async def of_routes_and_plugins(self) -> Resource:
        """For those who may list the plugins."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The collaborators of every handler, the limits they share, and the files of the documentation."""

    jobs: JobManagementService
    actions: JobActions
    batches: JobBatches
    plugins: PluginManagementService
    webhooks: WebhookManagementService
    schedules: ScheduleManagementService
    controls: PluginControlService
    reports: ReportService
    health: Health
    metrics: Metrics
    gate: Gate
    following: FollowingService
    ended_jobs: EndedJobs
    streams: OpenStreams
    stream_s: float
    max_body_bytes: int
    description: Description
    files: Mapping[str, Resource]
