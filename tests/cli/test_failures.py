"""What to do about a refusal goes by what was refused."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from service.api import problem_types
from service.cli.app import run
from service.cli.failures import _ADVICE, Exit, tell
from service.client import ApiError

from .conftest import cli


def problem(kind: str, detail: str) -> dict[str, str]:
    return {"type": problem_types.url(kind), "detail": detail}


@pytest.mark.parametrize(
    ("status", "told", "exit_code", "advice"),
    [
        (409, problem("schedule-exists", "There is a schedule"), Exit.USAGE, None),
        (409, problem("wrong-state", "It has SUCCESS"), Exit.USAGE, "jobservice show ID"),
        (422, problem("idempotency-key-reused", "It was used"), Exit.USAGE, None),
        (422, problem("invalid-payload", "/image: is required"), Exit.USAGE, "jobservice plugins NAME"),
        (503, problem("plugin-unavailable", "No module"), Exit.UNREACHABLE, "start the service again"),
        (503, problem("unavailable", "It is locked"), Exit.UNREACHABLE, "Try again later"),
        (502, {}, Exit.UNREACHABLE, "Try again later"),
        (404, {}, Exit.USAGE, "no jobservice"),
    ],
)
def test_advice_goes_by_the_kind_of_the_problem(
    status: int, told: dict[str, str], exit_code: Exit, advice: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tell(ApiError(status, told), as_json=False) == exit_code
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith("jobservice: ")
    assert told.get("detail", "") in first
    assert bool(rest) == (advice is not None)
    assert (advice or "") in " ".join(rest)


@pytest.mark.parametrize(
    ("foreign", "told"),
    [
        ({"title": "Bad Request", "errors": {"plugin": ["is required"]}}, "Bad Request"),
        (
            {"type": "https://elsewhere.example/unknown-job", "detail": "No such thing", "errors": ["x"]},
            "No such thing",
        ),
        ({"detail": [{"loc": ["body"], "msg": "wrong"}], "errors": [{"message": None}]}, "404 Not Found"),
        ({"detail": None, "errors": None}, "404 Not Found"),
    ],
)
@pytest.mark.parametrize("command", [("jobs",), ("report", "jobs")])
async def test_problems_of_another_service_are_told_as_such(
    tmp_path: Path, command: tuple[str, ...], foreign: dict[str, object], told: str
) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = json.dumps(foreign).encode()
        writer.write(b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        done = await asyncio.to_thread(cli, *command, "--url", url, cwd=tmp_path)
    assert done.returncode == Exit.USAGE
    first, hint = done.stderr.splitlines()
    assert first == f"jobservice: The service refused (404): {told}"
    assert hint == "What answers there is no jobservice: --url or JOBSERVICE_URL says where it is."


def test_a_service_without_room_says_once_when_to_come_again(capsys: pytest.CaptureFixture[str]) -> None:
    full = problem("queue-full", "The queue is full. Try again later.")
    for after_s, when in ((7.0, "in 7 s"), (None, "later")):
        assert tell(ApiError(429, full, retry_after_s=after_s), as_json=False) == Exit.UNREACHABLE
        told = "jobservice: The service cannot do this now (429): The queue is full.\n"
        assert capsys.readouterr().err == f"{told}Try again {when}.\n"
    never = problem("queue-full", "These are 6 jobs in all, and 5 may wait: send fewer at once.")
    assert tell(ApiError(429, never), as_json=False) == Exit.UNREACHABLE
    assert "Try again" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ("submit", "a.jpg", "b.png", "--plugin", "thumbnail"),
            "b.png: more than `submit` takes. "
            "One FILE or a folder: for several, `jobservice submit DIR --match '*.png'`.",
        ),
        (("show", "a", "b"), "b: more than `show` takes. One ID at a time."),
        (("snapshot", "a", "b", "c"), "b c: more than `snapshot` takes. One FILE, which is made."),
        (("schedules", "pause", "a", "b"), "b: more than `schedules pause` takes. One NAME at a time."),
        (("serve", "now"), "now: more than `serve` takes."),
    ],
)
def test_too_many_arguments_are_told_with_what_the_command_takes(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == Exit.USAGE
    first, hint = capsys.readouterr().err.splitlines()
    assert first == f"jobservice: {told}"
    assert hint.startswith("See: jobservice ")


def test_there_is_advice_for_problems_that_there_are() -> None:
    assert _ADVICE.keys() - {""} <= {each.kind for each in problem_types._TYPES}
