"""The judge of traces is judged itself, by traces in the right order and in every wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.durability.trace import breaches, parse

JOB = "01890a5d-ac96-774b-bcce-b302099a8057"
SHA = "ab" * 32
DATA = Path("/srv/data")
FILE = DATA / "blobs" / "ab" / SHA
TEMPORARY = "/srv/data/blobs/ab/.x1"

MAKE = '7 mkdir("/srv/data/blobs/ab", 0700) = 0'
WRITE_FILE = f'7 write(9<{TEMPORARY}>, "\\211PNG"..., 100000) = 100000'
SYNC_FILE = f"7 fsync(9<{TEMPORARY}>) = 0"
RENAME = f'7 rename("{TEMPORARY}", "{FILE}") = 0'
SYNC_DIRECTORY = "7 fsync(9</srv/data/blobs/ab>) = 0"
SYNC_PARENT = "7 fsync(9</srv/data/blobs>) = 0"
WRITE_ROW = f'8 pwrite64(11</srv/data/jobs.db-wal>, "\\r\\0\\0${JOB}"..., 4096, 56) = 4096'
SYNC_ROW = "8 fdatasync(11</srv/data/jobs.db-wal>) = 0"
ANSWER = (
    f'6 sendto(14<TCP:[127.0.0.1:8080->127.0.0.1:50000]>, "HTTP/1.1 202 Accepted\\r\\n'
    f'Location: /v1/jobs/{JOB}\\r\\n\\r\\n", 300, 0, NULL, 0) = 300'
)
RIGHT = (MAKE, WRITE_FILE, SYNC_FILE, RENAME, SYNC_DIRECTORY, SYNC_PARENT, WRITE_ROW, SYNC_ROW, ANSWER)


def judge(*lines: str) -> list[str]:
    return [breach.removeprefix(f"{JOB}: ") for breach in breaches(parse(lines), {JOB: FILE}, DATA / "jobs.db")]


def without(line: str) -> tuple[str, ...]:
    return tuple(other for other in RIGHT if other is not line)


def moved(line: str, *, before: str) -> tuple[str, ...]:
    rest = without(line)
    at = rest.index(before)
    return (*rest[:at], line, *rest[at:])


def test_the_right_order_is_clean():
    assert judge(*RIGHT) == []


@pytest.mark.parametrize(
    ("lines", "breach"),
    [
        (without(ANSWER), "no 202 in the trace"),
        (without(WRITE_ROW), "answered before its row was written"),
        (moved(ANSWER, before=WRITE_ROW), "answered before its row was written"),
        (without(SYNC_ROW), "answered before its row was synced"),
        (moved(ANSWER, before=SYNC_ROW), "answered before its row was synced"),
        (moved(SYNC_ROW, before=WRITE_ROW), "answered before its row was synced"),
        (without(RENAME), "row written before its file was in place"),
        (moved(WRITE_ROW, before=RENAME), "row written before its file was in place"),
        (without(SYNC_FILE), "its file was put in place before it was synced"),
        (moved(SYNC_FILE, before=WRITE_FILE), "its file was put in place before it was synced"),
        (without(SYNC_DIRECTORY), "row written before the directory of its file was synced"),
        (moved(SYNC_DIRECTORY, before=RENAME), "row written before the directory of its file was synced"),
        (
            without(SYNC_PARENT),
            "row written before the new directory /srv/data/blobs/ab was synced into /srv/data/blobs",
        ),
    ],
)
def test_a_wrong_order_is_found(lines, breach):
    assert breach in judge(*lines)


def test_a_sync_that_has_not_returned_covers_nothing():
    begun, returned = "8 fdatasync(11</srv/data/jobs.db-wal> <unfinished ...>", "8 <... fdatasync resumed>) = 0"
    assert judge(*without(SYNC_ROW)[:-1], begun, returned, ANSWER) == []
    assert judge(*without(SYNC_ROW)[:-1], begun, ANSWER, returned) == ["answered before its row was synced"]
    assert judge(*without(SYNC_ROW)[:-1], begun, ANSWER) == ["answered before its row was synced"]


def test_a_sync_that_began_before_the_row_was_there_covers_nothing():
    begun, returned = "8 fdatasync(11</srv/data/jobs.db-wal> <unfinished ...>", "8 <... fdatasync resumed>) = 0"
    other = WRITE_ROW.replace("8 ", "9 ", 1)
    lines = [line for line in RIGHT if line not in (WRITE_ROW, SYNC_ROW, ANSWER)]
    assert judge(*lines, begun, other, returned, ANSWER) == ["answered before its row was synced"]


def test_a_failed_sync_covers_nothing():
    failed = "8 fdatasync(11</srv/data/jobs.db-wal>) = -1 EIO (Input/output error)"
    assert judge(*without(SYNC_ROW)[:-1], failed, ANSWER) == ["answered before its row was synced"]


def test_the_log_of_another_database_covers_nothing():
    other = SYNC_ROW.replace("/srv/data/", "/srv/other/")
    assert judge(*without(SYNC_ROW)[:-1], other, ANSWER) == ["answered before its row was synced"]


def test_strings_come_back_as_the_bytes_they_were():
    (call,) = parse([r'1 write(3</a>, "\0\1234\377\"\\\n"..., 4096) = 4096'])
    assert call.strings == [b'\x00\x534\xff"\\\n']
    assert call.target == "/a"
