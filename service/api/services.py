"""What handlers work with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from service.api.access import Gate
from service.job_management import JobManagementService
from service.metrics import Metrics
from service.plugin_management import PluginManagementService


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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The collaborators of every handler, and the one limit they share."""

    jobs: JobManagementService
    plugins: PluginManagementService
    health: Health
    metrics: Metrics
    gate: Gate
    max_body_bytes: int
    openapi: bytes
