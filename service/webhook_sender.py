"""Sends one message to one endpoint: signed, to no address that is not allowed, and in bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import email.utils
import socket
import ssl
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver

from service import __version__
from service.models import timestamp
from service.webhook_models import WebhookSecret, signature
from service.webhook_urls import ForbiddenAddressError, WebhookRules

#: So much of an answer is read, for at most so long, before the connection is closed: only its status counts.
READ_BYTES: Final = 4_096
_READ_S: Final = 1.0
_HEADERS: Final = {
    "Content-Type": "application/json",
    "User-Agent": f"jobservice/{__version__} (+Standard Webhooks)",
    "Accept": "*/*",
    "Accept-Encoding": "identity",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back: a status, or an `error` that says why there is none; `retry_after_s` if the receiver asks."""

    status_code: int | None = None
    error: str | None = None
    retry_after_s: float | None = None


class WebhookSender:
    """An HTTP client that every connection of is looked at when it is made: see `open`."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, rules: WebhookRules, *, timeout_s: float = 15.0, resolver: AbstractResolver | None = None
    ) -> AsyncIterator[WebhookSender]:
        """A sender for as long as the block runs; an attempt takes `timeout_s` at most.

        `rules` are asked for the very address of each connection, behind whatever a name meant when it was resolved:
        a name that means another address the next time helps nobody. Neither proxies nor `.netrc` of the environment
        are used, no redirect is followed, no cookie is kept.
        """

        def checked_socket(address: Any) -> socket.socket:
            family, kind, protocol, _, where = address
            rules.check_connection(where[0], where[1])
            return socket.socket(family, kind, protocol)

        connector = aiohttp.TCPConnector(
            # The system's own way takes a thread for each name, of the few that all blocking work here shares; a name
            # server that does not answer would then hold up submissions.
            resolver=resolver or aiohttp.AsyncResolver(),
            socket_factory=checked_socket,
            use_dns_cache=False,
            force_close=True,
            limit=0,
        )
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
        ) as session:
            yield cls(session)

    async def send(self, url: str, message_id: str, body: bytes, secret: WebhookSecret) -> Answer:
        """Make one attempt to deliver `body`, signed with every secret that is valid now."""
        sent_at = int(time.time())
        signatures = [signature(text, message_id, sent_at, body) for text in secret.texts(timestamp())]
        headers = {
            **_HEADERS,
            "webhook-id": message_id,
            "webhook-timestamp": str(sent_at),
            "webhook-signature": " ".join(signatures),
        }
        try:
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                retry_after_s = _retry_after_s(answer.headers.get("Retry-After"))
                with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                    # So that a receiver that is still writing its answer sees no reset.
                    async with asyncio.timeout(_READ_S):
                        left = READ_BYTES
                        while left > 0 and (piece := await answer.content.read(left)):
                            left -= len(piece)
                return Answer(status_code=answer.status, retry_after_s=retry_after_s)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Answer(error=_why(error))


def _why(error: BaseException) -> str:
    """What a tenant is told: neither addresses nor what a name means inside."""
    reasons = [error, error.__cause__, error.__context__, getattr(error, "os_error", None)]
    if any(isinstance(reason, ForbiddenAddressError) for reason in reasons):
        return str(next(reason for reason in reasons if isinstance(reason, ForbiddenAddressError)))
    match error:
        case TimeoutError():
            return "no answer in time"
        case aiohttp.ClientConnectorDNSError():
            return "the host's name has no address"
        case aiohttp.ClientConnectorCertificateError():
            return "the certificate is not valid for the host"
        case aiohttp.ClientSSLError() | ssl.SSLError():
            return "no secure connection could be made"
        case aiohttp.ClientConnectorError():
            return "no connection could be made"
        case aiohttp.InvalidURL():
            return "the URL cannot be used"
        case aiohttp.ClientResponseError():
            return "the answer is not HTTP"
        case _:
            return "the connection ended without an answer"


def _retry_after_s(value: str | None) -> float | None:
    """The seconds of a `Retry-After`, which may also name a time; None without one, or for what is neither."""
    if value is None:
        return None
    if value.strip().isascii() and value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
