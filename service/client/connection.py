"""One service at one address: requests that are repeated while it is away, and streams that go on where they broke."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import os
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, TypeVar

import aiohttp
import yarl

from service.client.errors import ApiError, ServiceUnreachableError
from service.client.lines import lines, messages
from service.codec import decode
from service.models import JSON

#: A service that never answered is a wrong address sooner than a restart: that is told at once.
_FIRST_CONTACT_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 2.0
_ANSWER_TIMEOUT_S: Final = 30.0
#: The service sends a sign of life every 15 seconds.
_SILENCE_S: Final = 45.0
#: The answers that mean: come again.
_LATER: Final = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})

Query = Sequence[tuple[str, str]]
Failure = ApiError | ServiceUnreachableError
#: Told of each failure after which a call tries again, and None when the service has answered again.
OnTrouble = Callable[[Failure | None], None]

_Made = TypeVar("_Made")


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class News:
    """A document of a stream, and the id behind which the stream goes on."""

    id: str
    document: Any


class Connection:
    """Requests to one service, each repeated for up to `patience_s` seconds. Raises ValueError for what is no address.

    Repeated is what failed on its way, and what was answered with 429 or 503 and `Retry-After`.
    """

    def __init__(self, url: str, api_key: str | None, *, patience_s: float, on_trouble: OnTrouble | None) -> None:
        parsed = yarl.URL(url)
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError(f"{url!r} is not an address like http://127.0.0.1:8080")
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._patience_s = patience_s
        self._on_trouble = on_trouble
        self._answered = False
        self._troubled = False
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Make it usable."""
        self._session = aiohttp.ClientSession(headers=self._headers, auto_decompress=True)

    async def close(self) -> None:
        """Let go of every socket."""
        if self._session:
            await self._session.close()

    async def send(
        self,
        method: str,
        path: str,
        *,
        query: Query = (),
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        hold_s: float = 0,
        allowed: frozenset[int] = frozenset(),
        repeatable: bool = True,
        done: frozenset[int] = frozenset(),
    ) -> Answer:
        """The answer to a request, if it is a success or `allowed`; the service may hold it for `hold_s`.

        What is not `repeatable` is sent again only where it certainly had no effect. `done` are allowed behind a try
        whose answer was lost: they say that it had its effect. Raises `ApiError`, `ServiceUnreachableError`.
        """
        is_lost = False

        async def note_loss(
            request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
        ) -> aiohttp.ClientResponse:
            nonlocal is_lost
            try:
                return await handler(request)
            except (aiohttp.ClientError, TimeoutError) as error:
                is_lost = is_lost or not isinstance(error, aiohttp.ClientConnectorError)
                raise

        # aiohttp repeats some requests by itself, which nobody else can see.
        watchers = (note_loss,) if done else ()

        async def once() -> Answer:
            timeout_s = _ANSWER_TIMEOUT_S + hold_s
            async with self._request(method, path, query, body, headers, timeout_s, watchers) as response:
                await self._check(response, allowed | done if is_lost else allowed)
                return Answer(response.status, response.headers, await response.read())

        patience = self._patience()
        while True:
            try:
                answer = await once()
            except (aiohttp.ClientError, TimeoutError) as error:
                failure = self._unreachable(error)
                if not repeatable and not isinstance(error, aiohttp.ClientConnectorError):
                    raise failure from error
                await patience.wait(failure)
            except _LaterError as later:
                await patience.wait(later.refusal, later.after_s)
            else:
                return answer

    async def follow(
        self, path: str, query: Query = (), last_id: str | None = None, *, waits_for_room: bool = True
    ) -> AsyncGenerator[News | None, None]:
        """Server-sent events, behind that of `last_id`, until the service says that there are no more (204).

        A stream that breaks goes on behind the last event that came; None stands wherever it began without such a
        place, so that what happened before has to be looked up. Raises `ApiError` (429 at once unless it
        `waits_for_room`), `ServiceUnreachableError`.
        """
        patience = self._patience()
        while True:
            headers = {"Accept": "text/event-stream"} | ({} if last_id is None else {"Last-Event-ID": last_id})
            failure: Failure | None = None  # streams are closed by the hour, and by a service that stops: no trouble
            after_s = 0.0
            is_open = False
            try:
                async with self._request("GET", path, query, None, headers, _SILENCE_S) as response:
                    await self._check(response)
                    if response.status == HTTPStatus.NO_CONTENT:
                        return
                    if response.content_type != "text/event-stream":
                        raise self.foreign()
                    is_open = True
                    if last_id is None:
                        yield None
                    async for message in messages(response.content):
                        last_id = message.id or last_id
                        if message.data:
                            yield News(last_id or "", self._document(message.data))
            except (aiohttp.ClientError, TimeoutError) as error:
                failure = self._unreachable(error)
            except _LaterError as later:
                if later.refusal.status == HTTPStatus.TOO_MANY_REQUESTS and not waits_for_room:
                    raise later.refusal from None
                failure, after_s = later.refusal, later.after_s
            if is_open:
                patience = self._patience()
            await patience.wait(failure, after_s)

    async def documents(self, path: str, key: str) -> AsyncGenerator[dict[str, Any], None]:
        """The lines of an `application/x-ndjson` answer, each known by its `key`.

        One that breaks is read again, without those that came: their number may be another one by then.
        """
        given: set[str] = set()
        patience = self._patience()
        while True:
            try:
                async with self._request("GET", path, (), None, None, _ANSWER_TIMEOUT_S) as response:
                    await self._check(response)
                    async for line in lines(response.content):
                        document = self._document(line)
                        name = self.understood(lambda found: str(found[key]), document)
                        if name not in given:
                            given.add(name)
                            patience = self._patience()
                            yield document
                    return
            except (aiohttp.ClientError, TimeoutError) as error:
                await patience.wait(self._unreachable(error))
            except _LaterError as later:
                await patience.wait(later.refusal, later.after_s)

    async def pieces(self, path: str, query: Query = ()) -> AsyncGenerator[bytes, None]:
        """The body of an answer as it comes. Asked for again until it begins; one that breaks is not gone on with."""
        patience = self._patience()
        begun = False
        while True:
            try:
                async with self._request("GET", path, query, None, None, _ANSWER_TIMEOUT_S) as response:
                    await self._check(response)
                    async for piece in response.content.iter_any():
                        begun = True
                        yield piece
                    return
            except (aiohttp.ClientError, TimeoutError) as error:
                failure = self._unreachable(error)
                if begun:
                    raise failure from error
                await patience.wait(failure)
            except _LaterError as later:
                await patience.wait(later.refusal, later.after_s)

    def made(self, make: Callable[[dict[str, Any]], _Made], answer: Answer) -> _Made:
        """What `make` makes of the answer's document; raises `ServiceUnreachableError` if it is another one."""
        return self.understood(make, self._document(answer.body))

    def understood(self, make: Callable[[dict[str, Any]], _Made], document: Any) -> _Made:
        """What `make` makes of a document; raises `ServiceUnreachableError` if it is another one."""
        try:
            return make(document)
        except (KeyError, TypeError, ValueError) as error:
            raise self.foreign() from error

    def foreign(self) -> ServiceUnreachableError:
        """The failure of an address where something else answers."""
        return ServiceUnreachableError(self.url, "what answers there is not this service")

    def _document(self, text: bytes | str) -> Any:
        try:
            return decode(text)
        except ValueError as error:
            raise self.foreign() from error

    def _request(
        self,
        method: str,
        path: str,
        query: Query,
        body: bytes | None,
        headers: Mapping[str, str] | None,
        timeout_s: float,
        watchers: Sequence[aiohttp.ClientMiddlewareType] = (),
    ) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]:
        if self._session is None:
            raise RuntimeError("use the client as `async with Client(...) as client:`")
        # Links of the service come percent-encoded.
        url = yarl.URL(self.url + path, encoded=True)
        return self._session.request(
            method,
            url.with_query(list(query)) if query else url,
            data=body,
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=timeout_s),
            allow_redirects=False,
            # A type without a body would tell the service of a file.
            skip_auto_headers=("Content-Type",),
            middlewares=watchers,
        )

    async def _check(self, response: aiohttp.ClientResponse, allowed: frozenset[int] = frozenset()) -> None:
        """Raise what a refusal means; note that somebody answers."""
        self._answered = True
        if 200 <= response.status < 300 or response.status in allowed:
            self._over()
            return
        retry_after = response.headers.get("Retry-After", "")
        after_s = float(retry_after) if retry_after.isascii() and retry_after.isdecimal() else None
        refusal = ApiError(response.status, _problem(await response.read()), retry_after_s=after_s)
        if response.status in _LATER and after_s is not None:
            raise _LaterError(refusal, after_s)
        self._over()
        raise refusal

    def _patience(self) -> _Patience:
        # Whether the service has ever answered is known when there is something to wait for.
        return _Patience(lambda: self._patience_s if self._answered else _FIRST_CONTACT_S, self._trouble)

    def _trouble(self, failure: Failure) -> None:
        self._troubled = True
        if self._on_trouble:
            self._on_trouble(failure)

    def _over(self) -> None:
        if self._troubled:
            self._troubled = False
            if self._on_trouble:
                self._on_trouble(None)

    def _unreachable(self, error: Exception) -> ServiceUnreachableError:
        failure = ServiceUnreachableError(self.url, _reason(error))
        failure.__cause__ = error
        return failure


class _Patience:
    """Growing pauses between tries, for so many seconds from now in all."""

    def __init__(self, allowed_s: Callable[[], float], tell: Callable[[Failure], None]) -> None:
        self._allowed_s = allowed_s
        self._tell = tell
        self._clock = asyncio.get_running_loop().time
        self._begun = self._clock()
        self._pauses = _pauses()

    async def wait(self, failure: Failure | None, after_s: float = 0) -> None:
        """Wait before the next try, for `after_s` at least; raises `failure`, if it is one, when no time is left."""
        pause_s = max(next(self._pauses), after_s)
        if failure is not None:
            left_s = self._begun + self._allowed_s() - self._clock()
            if left_s <= 0:
                raise failure
            self._tell(failure)
            pause_s = min(pause_s, left_s)
        await asyncio.sleep(pause_s)


class _LaterError(Exception):
    """The service asks to come again in `after_s` seconds."""

    def __init__(self, refusal: ApiError, after_s: float) -> None:
        self.refusal = refusal
        self.after_s = after_s


def _problem(body: bytes) -> Mapping[str, JSON]:
    try:
        value = decode(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _pauses() -> Iterator[float]:
    return (min(0.1 * 2**count, _LONGEST_PAUSE_S) for count in itertools.count())


def _reason(error: Exception) -> str:
    match error:
        case aiohttp.ClientSSLError():
            # Its errno is none of the system's.
            return f"what answers speaks no https that can be trusted ({getattr(error.__cause__, 'reason', error)})"
        case aiohttp.ClientConnectorDNSError():
            return f"there is no host {error.host}"
        case aiohttp.ClientConnectorError():
            return os.strerror(error.errno).lower() if error.errno and error.errno > 0 else str(error.os_error)
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientPayloadError() | aiohttp.ClientOSError():
            return "the connection was lost"
        case TimeoutError():
            return "it did not answer in time"
        case _:
            return f"what answers does not speak HTTP as expected ({type(error).__name__})"
