"""Every 202 leaves the process after the sync that covers its row, and after its bytes are on disk: seen by strace."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.durability import trace
from tests.durability.service import Process, submit_many

SUBMISSIONS = 200

_reason = trace.unavailable()
# Where the gate runs, not being able to look is a failure.
pytestmark = pytest.mark.skipif(bool(_reason) and os.environ.get("CI") != "true", reason=_reason or "")


def audit(directory: Path, bug: str | None, submissions: int) -> list[str]:
    directory = directory.resolve()
    output = directory / "trace"
    service = Process(directory / "data", wrapper=trace.command(output), bug=bug)
    try:
        accepted = submit_many(service, submissions)
        service.signal(signal.SIGTERM)
        service.popen.wait(60)
    finally:
        service.close()
    with output.open(encoding="latin-1") as lines:
        calls = trace.parse(lines)
    assert len(accepted) == submissions
    return trace.breaches(calls, {one.id: service.file_of(one) for one in accepted}, directory / "data" / "jobs.db")


def test_each_of_200_acceptances_follows_the_sync_of_its_row_and_bytes(tmp_path):
    assert audit(tmp_path, None, SUBMISSIONS) == []


def test_commits_that_do_not_sync_are_found_out(tmp_path):
    found = audit(tmp_path, "commit-without-sync", 20)
    assert len([breach for breach in found if "before its row was synced" in breach]) == 20


def test_bytes_that_are_not_synced_are_found_out(tmp_path):
    found = audit(tmp_path, "keep-bytes-without-sync", 20)
    assert len([breach for breach in found if "before it was synced" in breach]) == 5
