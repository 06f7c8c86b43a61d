"""`Client`: every call of the service."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final, Self

from service.client import encoding, records
from service.client.connection import Answer, Connection, OnTrouble, Query
from service.client.endings import endings
from service.client.errors import ApiError, NoResultError
from service.client.media_types import ANY_BYTES
from service.client.records import Batch, BatchResult, Event, File, Job, NewJob, Plugin, SubmittedBatch
from service.client.reports import Reports
from service.client.schedules import Schedules
from service.models import JSON, JobOptions, JobStatus

PATIENCE_S: Final = 10.0
_HOLD_S: Final = 30.0  # of a long-poll that nobody watches
_WATCHED_HOLD_S: Final = 0.5  # the record's progress is seen this often
_PAGE: Final = 100
_AT_ONCE: Final = 8  # requests of one call under way
_JSON: Final = {"Content-Type": "application/json"}


class Client:
    """One service at `url`, as an async context manager.

    Every call is safe to repeat, and is repeated for up to `patience_s` seconds while the connection fails or the
    service asks to come again (429 or 503 with Retry-After); what makes jobs carries one idempotency key through all
    its tries. `on_trouble` is told of the failure before each further try, and None once the service has answered.
    Raises `ApiError` for a refusal and `ServiceUnreachableError` when patience ends. ValueError if `url` is not an
    HTTP address.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        patience_s: float = PATIENCE_S,
        on_trouble: OnTrouble | None = None,
    ) -> None:
        self._connection = Connection(url, api_key, patience_s=patience_s, on_trouble=on_trouble)
        self._send = self._connection.send
        self._made = self._connection.made
        self.reports = Reports(self._connection)
        self.schedules = Schedules(self._connection)

    @property
    def url(self) -> str:
        """Where the service is."""
        return self._connection.url

    async def __aenter__(self) -> Self:
        await self._connection.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._connection.close()

    # --- jobs are made ------------------------------------------------------------------------------------------

    async def submit(
        self,
        plugin: str,
        payload: Mapping[str, Any],
        *,
        options: JobOptions | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """The job made of `payload`, a JSON object in which bytes may stand."""
        document = {"plugin": plugin, "payload": dict(payload), **encoding.options_document(options)}
        body = await asyncio.to_thread(encoding.body, document)
        headers = _JSON | encoding.key(idempotency_key)
        return self._made(records.job, await self._send("POST", "/v1/jobs", body=body, headers=headers))

    async def submit_file(
        self,
        plugin: str,
        data: bytes | None,
        *,
        media_type: str = ANY_BYTES,
        fields: Mapping[str, str] | None = None,
        options: JobOptions | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """The job made of `data` as the plugin's bytes field, and of `fields`: text that its schema turns into values.

        Without `data` the fields are the whole payload.
        """
        query = [*(fields or {}).items(), *encoding.options_query(options)]
        headers = encoding.key(idempotency_key) | ({} if data is None else {"Content-Type": media_type})
        path = f"/v1/plugins/{encoding.segment(plugin)}/jobs"
        return self._made(records.job, await self._send("POST", path, query=query, body=data, headers=headers))

    async def submit_batch(self, jobs: Sequence[NewJob], *, idempotency_key: str | None = None) -> SubmittedBatch:
        """Up to 5000 jobs in one transaction, of which some may be refused; `ApiError` 422 if all are."""
        body = await asyncio.to_thread(lambda: encoding.body([encoding.new_job(job) for job in jobs]))
        headers = _JSON | encoding.key(idempotency_key)
        answer = await self._send("POST", "/v1/jobs/batch", body=body, headers=headers)
        return self._made(records.submitted_batch, answer)

    async def retry(self, job_id: str, *, idempotency_key: str | None = None) -> Job:
        """A new job made of the plugin, payload and options of one that has ended; `ApiError` 409 if it has not."""
        path = f"{_job(job_id)}/retry"
        return self._made(records.job, await self._send("POST", path, headers=encoding.key(idempotency_key)))

    # --- jobs are followed --------------------------------------------------------------------------------------

    async def get(self, job_id: str, *, wait_s: float = 0) -> Job:
        """The job; with `wait_s` (at most 60) as soon as it has ended, or when so many seconds are over."""
        return self._made(records.job, await self._send("GET", _job(job_id), query=_wait(wait_s), hold_s=wait_s))

    async def wait(self, job_id: str, on_progress: Callable[[Job], None] | None = None) -> Job:
        """The job once it has ended. `on_progress` sees its record about twice a second until then."""
        hold_s = 0.0
        while True:
            job = await self.get(job_id, wait_s=hold_s)
            if on_progress:
                on_progress(job)
            if job.status.is_terminal:
                return job
            hold_s = _WATCHED_HOLD_S if on_progress else _HOLD_S

    async def stream(self, job_id: str, *, after: int = 0) -> AsyncGenerator[Event, None]:
        """What happens to a job, behind its event number `after`, up to the event with which it ends.

        A connection that is lost is made again, and none of its events is missed or seen twice.
        """
        async with contextlib.aclosing(self._events(f"{_job(job_id)}/events", last_id=str(after))) as events:
            async for event in events:
                yield event
                if event.is_last:
                    return

    async def stream_all(
        self, *, plugin: str | None = None, types: Iterable[str] = (), after: str | None = None
    ) -> AsyncGenerator[Event, None]:
        """What happens to all jobs, or those of `plugin`: from now on, or behind the event of id `after`; without end.

        `0-0` is before the first one. A connection that is lost is made again as in `stream`.
        """
        query = [("plugin", plugin)] if plugin else []
        if wanted := ",".join(types):
            query.append(("type", wanted))
        async with contextlib.aclosing(self._events("/v1/events", query, after)) as events:
            async for event in events:
                yield event

    async def _events(self, path: str, query: Query = (), last_id: str | None = None) -> AsyncGenerator[Event, None]:
        async with contextlib.aclosing(self._connection.follow(path, query, last_id)) as stream:
            async for news in stream:
                if news is not None:
                    yield self._connection.understood(functools.partial(records.event, news.id), news.document)

    async def results(self, job_ids: Iterable[str]) -> AsyncGenerator[Job, None]:
        """Each of these jobs once it has ended, in the order in which they end; those that had ended come first.

        One that is not there, or not any more, stops no other: `ApiError` 404 about it is raised when all others have
        come.
        """
        pending = dict.fromkeys(map(encoding.spelled, job_ids))
        unknown: ApiError | None = None
        async with contextlib.aclosing(endings(self._connection)) as hints:
            while pending:
                ended = await anext(hints)
                looked_at = list(pending) if ended is None else [ended] if ended in pending else []
                results = await self._found(looked_at, self.get if ended is None else self.wait)
                jobs: list[Job] = []
                for job_id, found in zip(looked_at, results, strict=True):
                    if isinstance(found, ApiError):
                        unknown = unknown or found
                        del pending[job_id]
                    elif found.status.is_terminal:
                        jobs.append(found)
                for job in sorted(jobs, key=lambda job: job.finished_at or ""):
                    del pending[job.id]
                    yield job
        if unknown is not None:
            raise unknown

    async def _found(self, job_ids: Sequence[str], look: Callable[[str], Awaitable[Job]]) -> list[Job | ApiError]:
        """What `look` finds of each of these jobs, or that there is none."""
        room = asyncio.Semaphore(_AT_ONCE)

        async def find(job_id: str) -> Job | ApiError:
            async with room:
                try:
                    return await look(job_id)
                except ApiError as error:
                    if error.status != HTTPStatus.NOT_FOUND:
                        raise
                    return error

        tasks = [asyncio.ensure_future(find(job_id)) for job_id in job_ids]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def batch(self, batch_id: str, *, wait_s: float = 0) -> Batch:
        """How far a batch is; with `wait_s` (at most 60) once all its jobs have ended, or so many seconds later."""
        path = f"/v1/batches/{encoding.segment(batch_id)}"
        return self._made(records.batch, await self._send("GET", path, query=_wait(wait_s), hold_s=wait_s))

    async def batch_results(self, batch_id: str) -> AsyncGenerator[BatchResult, None]:
        """What each job of a batch has come to so far, in the order of their ids; bytes as references."""
        path = f"/v1/batches/{encoding.segment(batch_id)}/results"
        async with contextlib.aclosing(self._connection.documents(path, "id")) as documents:
            async for document in documents:
                yield self._connection.understood(records.batch_result, document)

    async def jobs(
        self,
        *,
        status: JobStatus | None = None,
        plugin: str | None = None,
        tag: str | None = None,
        error_type: str | None = None,
        created_after: str | None = None,
        created_before: str | None = None,
        limit: int | None = None,
    ) -> AsyncGenerator[Job, None]:
        """Jobs, newest first, without payload and result; page after page until `limit`, or all."""
        filters = {
            "status": status,
            "plugin": plugin,
            "tag": tag,
            "error_type": error_type,
            "created_after": created_after,
            "created_before": created_before,
        }
        query = [(name, encoding.plain_text(value)) for name, value in filters.items() if value is not None]
        left = limit
        cursor: str | None = None
        while left is None or left > 0:
            page_size = _PAGE if left is None else min(left, _PAGE)
            place = [("limit", str(page_size)), *([("cursor", cursor)] if cursor else [])]
            page = self._made(records.page, await self._send("GET", "/v1/jobs", query=query + place))
            for job in page.items:
                yield job
            cursor = page.next
            if cursor is None:
                return
            left = None if left is None else left - len(page.items)

    # --- what they gave -----------------------------------------------------------------------------------------

    async def result(self, job_id: str) -> Mapping[str, JSON] | File:
        """The result, bytes in it as references; a `File` if it holds exactly one bytes value. Else `NoResultError`."""
        path = f"{_job(job_id)}/result"
        while (answer := await self._send("GET", path, allowed=frozenset({202, 409, 422}))).status != HTTPStatus.OK:
            job = await self.get(job_id)
            if job.status is not JobStatus.SUCCESS:  # else it has ended between the two
                raise NoResultError(job)
        return _file(answer) if "Content-Disposition" in answer.headers else self._made(dict, answer)

    async def read(self, path: str) -> File:
        """The bytes behind a reference's `url`, or behind an artifact's path."""
        if not path.startswith("/"):
            raise ValueError(f"{path!r} is not a path on the service")
        return _file(await self._send("GET", path))

    # --- jobs are stopped ---------------------------------------------------------------------------------------

    async def cancel(self, job_id: str) -> Job:
        """The job: CANCELLED, or still RUNNING while it is being stopped. `ApiError` 409 if it had ended before."""
        return self._made(records.job, await self._send("POST", f"{_job(job_id)}/cancel"))

    # --- plugins ------------------------------------------------------------------------------------------------

    async def plugins(self) -> Sequence[Plugin]:
        """Every installed plugin, without its schemas."""
        return self._made(records.plugins, await self._send("GET", "/v1/plugins"))

    async def plugin(self, name: str) -> Plugin:
        """One plugin with its schemas."""
        return self._made(records.plugin, await self._send("GET", f"/v1/plugins/{encoding.segment(name)}"))


def _job(job_id: str) -> str:
    return f"/v1/jobs/{encoding.segment(job_id)}"


def _wait(wait_s: float) -> Query:
    return [("wait", f"{wait_s:g}")] if wait_s else []


def _file(answer: Answer) -> File:
    return File(data=answer.body, media_type=answer.headers.get("Content-Type", ANY_BYTES))
