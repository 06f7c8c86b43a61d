"""The service from the outside: an async client over HTTP whose calls survive a lost connection and a restart."""

from service.client.client import PATIENCE_S, Client
from service.client.connection import Failure
from service.client.errors import ApiError, NoResultError, ServiceUnreachableError, places, told
from service.client.media_types import media_type_of
from service.client.records import (
    Batch,
    BatchItem,
    BatchResult,
    Event,
    File,
    Job,
    NewJob,
    NewSchedule,
    Plugin,
    Report,
    ReportColumn,
    Schedule,
    SubmittedBatch,
)
from service.client.reports import Reports
from service.client.schedules import Schedules
from service.models import JobOptions, JobWebhook

__all__ = [
    "PATIENCE_S",
    "ApiError",
    "Batch",
    "BatchItem",
    "BatchResult",
    "Client",
    "Event",
    "Failure",
    "File",
    "Job",
    "JobOptions",
    "JobWebhook",
    "NewJob",
    "NewSchedule",
    "NoResultError",
    "Plugin",
    "Report",
    "ReportColumn",
    "Reports",
    "Schedule",
    "Schedules",
    "ServiceUnreachableError",
    "SubmittedBatch",
    "media_type_of",
    "places",
    "told",
]
