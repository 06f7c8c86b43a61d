"""The real connector, asked to go where it may not: nobody there is connected to."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
from collections.abc import AsyncIterator

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from service.webhook_models import WebhookSecret, new_webhook_secret
from service.webhook_sender import Answer, WebhookSender
from service.webhook_urls import WebhookRules, parse_networks

from .conftest import Receiver, status, until

FORBIDDEN = "the host's address is not one that webhooks may go to"
#: Where deliveries may go in these tests; 127.0.0.1 is as forbidden as it is by default.
ALLOWED = "127.0.0.2"
SECRET = WebhookSecret(text=new_webhook_secret())


class Names(AbstractResolver):
    """Names that mean something else each time: the next of `answers`, the last one for ever."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        return [
            {"hostname": host, "host": address, "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}
            for address in answer
        ]

    async def close(self) -> None:
        pass


class Witness:
    """Listens on the same port of an allowed and of a forbidden address, and counts who connects."""

    def __init__(self) -> None:
        self.connections = {ALLOWED: 0, "127.0.0.1": 0, "::1": 0}
        self.port = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections[writer.get_extra_info("sockname")[0]] += 1
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            await writer.drain()
        writer.close()

    @property
    def refused(self) -> int:
        """Connections where none may be."""
        return self.connections["127.0.0.1"] + self.connections["::1"]


@pytest.fixture
async def witness() -> AsyncIterator[Witness]:
    async with contextlib.AsyncExitStack() as stack:
        while (one := await _listening(stack)) is None:
            await stack.aclose()
        yield one


async def _listening(stack: contextlib.AsyncExitStack) -> Witness | None:
    """A witness, or None where the port that was free at the first address is somebody's at another one."""
    one = Witness()
    for address in (ALLOWED, "127.0.0.1", *(["::1"] if _has_ipv6() else [])):
        try:
            server = await asyncio.start_server(one.handle, address, one.port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return None
            raise
        await stack.enter_async_context(server)
        one.port = server.sockets[0].getsockname()[1]
    return one


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


async def send(url: str, names: AbstractResolver | None = None, *, timeout_s: float = 5.0) -> Answer:
    rules = WebhookRules(http=True, networks=parse_networks(ALLOWED))
    async with WebhookSender.open(rules, timeout_s=timeout_s, resolver=names) as sender:
        return await sender.send(url, "id", b"{}", SECRET)


async def test_a_name_that_means_another_address_the_next_time_gets_nothing(witness: Witness) -> None:
    names = Names([ALLOWED], ["127.0.0.1"])
    rules = WebhookRules(http=True, networks=parse_networks(ALLOWED))
    async with WebhookSender.open(rules, resolver=names) as sender:
        url = f"http://rebinding.example:{witness.port}/"
        answers = [await sender.send(url, "id", b"{}", SECRET) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [204, None, None]
    assert [answer.error for answer in answers[1:]] == [FORBIDDEN] * 2
    assert (names.asked, witness.connections[ALLOWED], witness.refused) == (3, 1, 0)


async def test_of_several_addresses_only_the_allowed_ones_are_tried(witness: Witness) -> None:
    answer = await send(f"http://several.example:{witness.port}/", Names(["127.0.0.1", "::1", ALLOWED, "127.0.0.1"]))
    assert (answer.status_code, witness.connections[ALLOWED], witness.refused) == (204, 1, 0)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "[::127.0.0.1]", "localhost", "localhost.", "LOCALHOST",
        "2130706433", "0x7f.1", "127.1", "017700000001", "0.0.0.0", "[::]", "127.0.0.1.",
    ],
)  # fmt: skip
async def test_however_a_forbidden_address_is_written_nobody_connects(witness: Witness, host: str) -> None:
    answer = await send(f"http://{host}:{witness.port}/")
    assert answer.error in (FORBIDDEN, "the URL cannot be used", "the host's name has no address"), answer
    assert (answer.status_code, witness.refused) == (None, 0)


async def test_a_redirect_is_not_followed(witness: Witness, receiver: Receiver) -> None:
    receiver.answers = [status(307, Location=f"http://127.0.0.1:{witness.port}/")]
    rules = WebhookRules(http=True, networks=parse_networks("127.0.0.0/8"))
    async with WebhookSender.open(rules) as sender:
        assert await sender.send(receiver.url, "id", b"{}", SECRET) == Answer(status_code=307)
    assert sum(witness.connections.values()) == 0


async def test_proxies_of_the_environment_are_not_used(witness: Witness, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{witness.port}")
    answer = await send(f"http://{ALLOWED}:{witness.port}/")
    assert (answer.status_code, witness.connections[ALLOWED], witness.refused) == (204, 1, 0)


@contextlib.asynccontextmanager
async def answering(*pieces: bytes, pause_s: float = 0.0) -> AsyncIterator[str]:
    """The URL of a server that sends `pieces`, whatever it is asked, and then nothing."""

    open_writers: list[asyncio.StreamWriter] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_writers.append(writer)
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause_s)
            await reader.read()

    async with await asyncio.start_server(handle, ALLOWED, 0) as server:
        yield f"http://{ALLOWED}:{server.sockets[0].getsockname()[1]}/"
        for writer in open_writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@pytest.mark.parametrize(
    ("pieces", "pause_s", "error"),
    [
        ([b"SSH-2.0-OpenSSH_9.2\r\n"], 0.0, "the answer is not HTTP"),
        ([b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"], 0.0, "the answer is not HTTP"),
        ([b"HTTP/1.1 200 OK\r\nX: "] + [b"x"] * 1_000, 0.1, "no answer in time"),
        ([], 0.0, "no answer in time"),
    ],
    ids=["not-http", "large-headers", "dripping", "silent"],
)
async def test_an_answer_that_is_none_ends_in_time(pieces: list[bytes], pause_s: float, error: str) -> None:
    async with answering(*pieces, pause_s=pause_s) as url:
        assert await send(url, timeout_s=1.0) == Answer(error=error)


async def test_what_speaks_no_tls_is_told_so() -> None:
    async with answering(b"HTTP/1.1 200 OK\r\n\r\n") as url:
        assert (await send(url.replace("http:", "https:"))).error == "no secure connection could be made"


@pytest.mark.parametrize(
    ("value", "expected"),
    [("3", 3.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("soon", None), ("-1", None), ("1e9", None), ("٣", None)],
)
async def test_retry_after_is_a_number_of_seconds_or_a_time(
    receiver: Receiver, value: str, expected: float | None
) -> None:
    receiver.answers = [status(503, Retry_After=value)]
    rules = WebhookRules(http=True, networks=parse_networks("127.0.0.0/8"))
    async with WebhookSender.open(rules) as sender:
        answer = await sender.send(receiver.url, "id", b"{}", SECRET)
    assert answer == Answer(status_code=503, retry_after_s=expected)
    await until(lambda: receiver.messages)


async def test_without_the_look_at_the_address_the_witness_sees_who_connects(
    witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WebhookRules, "check_connection", lambda *_: None)
    await send(f"http://rebinding.example:{witness.port}/", Names(["127.0.0.1"]))
    assert witness.refused == 1


async def test_names_that_nobody_answers_for_hold_up_no_blocking_work(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def unanswered(*_: object, **__: object) -> list[object]:
        released.wait(20)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", unanswered)
    async with WebhookSender.open(WebhookRules(), timeout_s=5) as sender:
        url = "https://receiver.invalid/"
        sends = [asyncio.create_task(sender.send(url, "1", b"{}", SECRET)) for _ in range(64)]
        for _ in range(100):  # until all have asked
            await asyncio.sleep(0)
        try:
            async with asyncio.timeout(4):
                await asyncio.to_thread(int)
        finally:
            released.set()
        assert {(await send).error for send in sends} <= {"the host's name has no address", "no answer in time"}
