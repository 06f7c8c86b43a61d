"""The service from the outside: an async client over HTTP whose calls survive a lost connection and a restart."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import itertools
import mimetypes
import os
import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote

import aiohttp
import yarl

from service.codec import BYTES_KEY, decode, encode
from service.models import JSON, JobOptions, JobStatus, Progress, Timestamp

#: A service that never answered is a wrong address sooner than a restart: that is told at once.
_FIRST_CONTACT_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 2.0
_HOLD_S: Final = 30.0  # of a long-poll that nobody watches
_WATCHED_HOLD_S: Final = 0.5  # the record's progress is seen this often
_ANSWER_TIMEOUT_S: Final = 30.0
_PAGE: Final = 100
_ANY_BYTES: Final = "application/octet-stream"

#: What a file is by its first bytes; they tell the truth more often than its name.
_MAGIC: Final = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
    (re.compile(rb"II\*\0|MM\0\*"), "image/tiff"),
    (re.compile(rb"BM.{4}\0\0\0\0", re.DOTALL), "image/bmp"),
    (re.compile(rb"....ftypavi[fs]", re.DOTALL), "image/avif"),
    (re.compile(rb"....ftyp(hei[cx]|mif1)", re.DOTALL), "image/heic"),
    (re.compile(rb"%PDF-"), "application/pdf"),
)


class ApiError(Exception):
    """The service refused a request, or could not serve it; the text is what it said and where.

    `problem` is the problem details object (RFC 9457) as it came, empty if none did.
    """

    def __init__(self, status: int, problem: Mapping[str, JSON]) -> None:
        detail = problem.get("detail") or problem.get("title") or _phrase(status)
        # The detail may quote the places already.
        unsaid = [
            f"{place['pointer'] or 'the body'}: {place['message']}"
            for place in problem.get("errors", ())
            if place["message"] not in detail
        ]
        super().__init__(f"{detail} ({'; '.join(unsaid)})" if unsaid else detail)
        self.status = status
        self.problem = problem


class ServiceUnreachableError(Exception):
    """Nothing that is this service answers at `url`; `reason` says how it failed."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"No service answers at {url}: {reason}")
        self.url = url
        self.reason = reason


class NoResultError(Exception):
    """The job has no result; `job` is its record, which says why: not ended yet, FAILED or CANCELLED."""

    def __init__(self, job: Job) -> None:
        super().__init__(f"Job {job.id} is {job.status}: it has no result.")
        self.job = job


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as the service showed it. `payload` and `result` are None in lists; bytes stand in them as references.

    `artifacts` maps names to paths for `Client.read`. `document` is the whole record as it came.
    """

    id: str
    plugin: str
    plugin_version: str | None
    status: JobStatus
    tags: Sequence[str]
    attempt: int
    max_attempts: int
    progress: Progress | None
    payload: Mapping[str, JSON] | None
    result: Mapping[str, JSON] | None
    error: Mapping[str, JSON] | None
    created_at: Timestamp
    started_at: Timestamp | None
    finished_at: Timestamp | None
    artifacts: Mapping[str, str]
    document: Mapping[str, JSON]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """An installed plugin. The schemas are None in lists and until it is available; `reason` says what is wrong."""

    name: str
    version: str | None
    description: str | None
    distribution: str
    state: str  # loading, available or unavailable
    healthy: bool
    reason: str | None
    input_schema: Mapping[str, JSON] | None
    output_schema: Mapping[str, JSON] | None
    document: Mapping[str, JSON]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """Bytes that the service sent, and what they are."""

    data: bytes
    media_type: str


@dataclasses.dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class _Page:
    items: Sequence[Job]
    next: str | None


_Made = TypeVar("_Made")


class Client:
    """One service at `url`, as an async context manager.

    Every call is safe to repeat, and is repeated for up to `patience_s` seconds while the connection fails or the
    service asks to come again (503 with Retry-After); a submission carries one idempotency key through all its tries.
    Raises `ApiError` for a refusal and `ServiceUnreachableError` when patience ends. ValueError if `url` is not an
    HTTP address.
    """

    def __init__(self, url: str, api_key: str | None = None, *, patience_s: float = 10.0) -> None:
        parsed = yarl.URL(url)
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError(f"{url!r} is not an address like http://127.0.0.1:8080")
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._patience_s = patience_s
        self._answered = False
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(headers=self._headers, auto_decompress=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session:
            await self._session.close()

    async def submit(
        self,
        plugin: str,
        payload: Mapping[str, Any],
        *,
        options: JobOptions | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """The job made of `payload`, a JSON object in which bytes may stand."""
        document = {"plugin": plugin, "payload": dict(payload), **_options(options)}
        body = await asyncio.to_thread(encode, document, _marked)
        headers = {"Content-Type": "application/json"} | _key(idempotency_key)
        return self._made(_job, await self._send("POST", "/v1/jobs", body=body.encode(), headers=headers))

    async def submit_file(
        self,
        plugin: str,
        data: bytes | None,
        *,
        media_type: str = _ANY_BYTES,
        fields: Mapping[str, str] | None = None,
        options: JobOptions | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """The job made of `data` as the plugin's bytes field, and of `fields`: text that its schema turns into values.

        Without `data` the fields are the whole payload.
        """
        query = list((fields or {}).items())
        for name, value in _options(options).items():
            texts = value if name == "tags" else [value if isinstance(value, str) else encode(value)]
            query += [(f"job.{name}", text) for text in texts]
        headers = _key(idempotency_key) | ({} if data is None else {"Content-Type": media_type})
        path = f"/v1/plugins/{_segment(plugin)}/jobs"
        return self._made(_job, await self._send("POST", path, query=query, body=data, headers=headers))

    async def get(self, job_id: str, *, wait_s: float = 0) -> Job:
        """The job; with `wait_s` (at most 60) as soon as it has ended, or when so many seconds are over."""
        query = [("wait", f"{wait_s:g}")] if wait_s else []
        path = f"/v1/jobs/{_segment(job_id)}"
        return self._made(_job, await self._send("GET", path, query=query, hold_s=wait_s))

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
    ) -> AsyncIterator[Job]:
        """Jobs, newest first, without payload and result; page after page until `limit`, or all."""
        filters = {
            "status": status,
            "plugin": plugin,
            "tag": tag,
            "error_type": error_type,
            "created_after": created_after,
            "created_before": created_before,
        }
        query = [(name, str(value)) for name, value in filters.items() if value is not None]
        left = limit
        cursor: str | None = None
        while left is None or left > 0:
            page_size = _PAGE if left is None else min(left, _PAGE)
            place = [("limit", str(page_size)), *([("cursor", cursor)] if cursor else [])]
            page = self._made(_page, await self._send("GET", "/v1/jobs", query=query + place))
            for job in page.items:
                yield job
            cursor = page.next
            if cursor is None:
                return
            left = None if left is None else left - len(page.items)

    async def result(self, job_id: str) -> Mapping[str, JSON] | File:
        """The result, bytes in it as references; a `File` if it holds exactly one bytes value. Else `NoResultError`."""
        path = f"/v1/jobs/{_segment(job_id)}/result"
        answer = await self._send("GET", path, allowed=frozenset({202, 409, 422}))
        if answer.status != HTTPStatus.OK:
            raise NoResultError(await self.get(job_id))
        return _file(answer) if "Content-Disposition" in answer.headers else self._made(dict, answer)

    async def read(self, path: str) -> File:
        """The bytes behind a reference's `url`, or behind an artifact's path."""
        if not path.startswith("/"):
            raise ValueError(f"{path!r} is not a path on the service")
        return _file(await self._send("GET", path))

    async def cancel(self, job_id: str) -> Job:
        """The job: CANCELLED, or still RUNNING while it is being stopped. `ApiError` 409 if it had ended before."""
        answer = await self._send("POST", f"/v1/jobs/{_segment(job_id)}/cancel")
        return self._made(_job, answer)

    async def plugins(self) -> Sequence[Plugin]:
        """Every installed plugin, without its schemas."""
        return self._made(_plugins, await self._send("GET", "/v1/plugins"))

    async def plugin(self, name: str) -> Plugin:
        """One plugin with its schemas."""
        return self._made(_plugin, await self._send("GET", f"/v1/plugins/{_segment(name)}"))

    def _made(self, make: Callable[[dict[str, Any]], _Made], answer: _Answer) -> _Made:
        try:
            return make(decode(answer.body))
        except (KeyError, TypeError, ValueError) as error:
            raise ServiceUnreachableError(self.url, "what answers there is not this service") from error

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        hold_s: float = 0,
        allowed: frozenset[int] = frozenset(),
    ) -> _Answer:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        # Links of the service come percent-encoded.
        url = yarl.URL(self.url + path, encoded=True)
        if query:
            url = url.with_query(query)
        for pause in _pauses():
            failure: ApiError | ServiceUnreachableError
            try:
                answer = await self._once(method, url, body, headers, _ANSWER_TIMEOUT_S + hold_s)
            except (aiohttp.ClientError, TimeoutError) as error:
                failure = ServiceUnreachableError(self.url, _reason(error))
                failure.__cause__ = error
                after_s = pause
            else:
                self._answered = True
                if 200 <= answer.status < 300 or answer.status in allowed:
                    return answer
                failure = ApiError(answer.status, _problem(answer))
                retry_after_s = _retry_after(answer)
                if answer.status != HTTPStatus.SERVICE_UNAVAILABLE or retry_after_s is None:
                    raise failure
                after_s = max(retry_after_s, pause)
            left_s = begun + (self._patience_s if self._answered else _FIRST_CONTACT_S) - loop.time()
            if left_s <= 0:
                raise failure
            await asyncio.sleep(min(after_s, left_s))
        raise AssertionError("pauses never end")

    async def _once(
        self, method: str, url: yarl.URL, body: bytes | None, headers: Mapping[str, str] | None, timeout_s: float
    ) -> _Answer:
        if self._session is None:
            raise RuntimeError("use the client as `async with Client(...) as client:`")
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=timeout_s)
        async with self._session.request(
            method,
            url,
            data=body,
            headers=headers,
            timeout=timeout,
            allow_redirects=False,
            # A type without a body would tell the service of a file.
            skip_auto_headers=("Content-Type",),
        ) as response:
            return _Answer(response.status, response.headers, await response.read())


def media_type_of(name: str, data: bytes) -> str:
    """What a file is: by its first bytes where they are known, else by its name, else any bytes."""
    known = next((media_type for magic, media_type in _MAGIC if magic.match(data)), None)
    return known or mimetypes.guess_type(name)[0] or _ANY_BYTES


def _pauses() -> Iterator[float]:
    return (min(0.1 * 2**count, _LONGEST_PAUSE_S) for count in itertools.count())


def _reason(error: Exception) -> str:
    match error:
        case aiohttp.ClientConnectorError():
            return os.strerror(error.errno).lower() if error.errno and error.errno > 0 else str(error.os_error)
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientPayloadError() | aiohttp.ClientOSError():
            return "the connection was lost"
        case TimeoutError():
            return "it did not answer in time"
        case _:
            return f"what answers does not speak HTTP as expected ({type(error).__name__})"


def _retry_after(answer: _Answer) -> float | None:
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdecimal() else None


def _segment(text: str) -> str:
    return quote(text, safe="")


def _key(idempotency_key: str | None) -> dict[str, str]:
    return {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}


def _options(options: JobOptions | None) -> dict[str, Any]:
    """Those options that differ from their defaults."""
    if options is None:
        return {}
    defaults = JobOptions()
    names = [field.name for field in dataclasses.fields(options)]
    given = {name: getattr(options, name) for name in names if getattr(options, name) != getattr(defaults, name)}
    if "tags" in given:
        given["tags"] = list(given["tags"])
    return given


def _marked(data: bytes) -> dict[str, str]:
    return {BYTES_KEY: base64.b64encode(data).decode()}


def _problem(answer: _Answer) -> Mapping[str, JSON]:
    try:
        value = decode(answer.body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _file(answer: _Answer) -> File:
    return File(data=answer.body, media_type=answer.headers.get("Content-Type", _ANY_BYTES))


def _job(document: Mapping[str, Any]) -> Job:
    progress = document["progress"]
    return Job(
        id=document["id"],
        plugin=document["plugin"],
        plugin_version=document["plugin_version"],
        status=JobStatus(document["status"]),
        tags=document["tags"],
        attempt=document["attempt"],
        max_attempts=document["max_attempts"],
        progress=progress and Progress(fraction=progress["fraction"], message=progress["message"]),
        payload=document.get("payload"),
        result=document.get("result"),
        error=document["error"],
        created_at=document["created_at"],
        started_at=document["started_at"],
        finished_at=document["finished_at"],
        artifacts=document["links"]["artifacts"],
        document=document,
    )


def _page(document: Mapping[str, Any]) -> _Page:
    return _Page([_job(item) for item in document["items"]], document["next"])


def _plugins(document: Mapping[str, Any]) -> Sequence[Plugin]:
    return [_plugin(item) for item in document["items"]]


def _plugin(document: Mapping[str, Any]) -> Plugin:
    return Plugin(
        name=document["name"],
        version=document["version"],
        description=document["description"],
        distribution=document["distribution"],
        state=document["state"],
        healthy=document["healthy"],
        reason=document["reason"],
        input_schema=document.get("input_schema"),
        output_schema=document.get("output_schema"),
        document=document,
    )


def _phrase(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
