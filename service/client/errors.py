"""How a call fails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from http import HTTPStatus

from service.client.records import Job
from service.models import JSON


class ApiError(Exception):
    """The service refused a request, or could not serve it; the text is what it said and where.

    `problem` is the problem details object (RFC 9457) as it came, empty if none did. After `retry_after_s` the service
    may be asked again; None where it did not say so.
    """

    def __init__(self, status: int, problem: Mapping[str, JSON], *, retry_after_s: float | None = None) -> None:
        super().__init__(told(problem) or _phrase(status))
        self.status = status
        self.problem = problem
        self.retry_after_s = retry_after_s


class ServiceUnreachableError(Exception):
    """Nothing that is this service answers at `url`; `reason` says how it failed."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"No service answers at {url}: {reason}")
        self.url = url
        self.reason = reason


class NoResultError(Exception):
    """The job has no result; the text says why, and `job` is its record: not ended yet, FAILED or CANCELLED."""

    def __init__(self, job: Job) -> None:
        why = f" ({job.error['type']}: {job.error['message']})" if job.error else ""
        super().__init__(f"Job {job.id} is {job.status}: it has no result{why}.")
        self.job = job


def told(problem: Mapping[str, JSON]) -> str:
    """What a problem details object says and where, in one line."""
    detail = next((text for name in ("detail", "title") if (text := problem.get(name)) and isinstance(text, str)), "")
    # The detail may quote the places already.
    unsaid = [f"{pointer or 'the body'}: {message}" for pointer, message in places(problem) if message not in detail]
    return f"{detail} ({'; '.join(unsaid)})" if unsaid else detail


def places(problem: Mapping[str, JSON]) -> Iterator[tuple[str, str]]:
    """The pointer and the message of each place that a problem names; those of other services have other forms."""
    errors = problem.get("errors")
    for place in errors if isinstance(errors, list) else ():
        match place:
            case {"pointer": str(pointer), "message": str(message)}:
                yield pointer, message


def _phrase(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
