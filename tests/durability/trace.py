"""Reads what `strace -f -yy` saw a service do, and judges whether each 202 came after what it promises was on disk."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

_TRACED = (
    "write", "writev", "pwrite64", "pwritev", "sendto", "sendmsg", "fsync", "fdatasync", "?rename", "?renameat",
    "renameat2", "?mkdir", "mkdirat",
)  # fmt: skip
#: A page of the database, and so a job's id, is shown whole.
_SHOWN_BYTES = 4096

_BEGIN = re.compile(r"^(?P<pid>\d+)\s+(?P<name>\w+)\((?P<text>.*)$")
_RESUMED = re.compile(r"^(?P<pid>\d+)\s+<\.\.\. \w+ resumed>(?P<text>.*)$")
_RESULT = re.compile(r"=\s+(?P<result>-?\d+)[^=]*$")
_FIRST_FD = re.compile(r"^\d+<(?P<target>.*?)>[,)\s]")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ACCEPTED = re.compile(rb"HTTP/1\.1 202 .*?/v1/jobs/(?P<id>[0-9a-f-]{36})", re.DOTALL)


def command(output: Path) -> list[str]:
    """What to put before a command line to have it traced into `output`."""
    return ["strace", "-f", "-yy", "--seccomp-bpf", f"-s{_SHOWN_BYTES}", "-e", f"trace={','.join(_TRACED)}",
            "-o", str(output)]  # fmt: skip


def unavailable() -> str | None:
    """Why nothing can be traced here; None if it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    probe = subprocess.run(["strace", "-f", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    return None if probe.returncode == 0 else f"strace may not trace here: {probe.stderr.strip()}"


@dataclasses.dataclass(slots=True, kw_only=True)
class Call:
    """A system call that succeeded. `begin` and `end` order it among all others; `end` is None if it never returned."""

    name: str
    target: str  # what its first descriptor is open on; "" if it has none
    strings: Sequence[bytes]
    begin: int
    end: int | None = None

    def ended_before(self, moment: int) -> bool:
        return self.end is not None and self.end < moment


def parse(lines: Iterable[str]) -> list[Call]:
    """The calls in the order they began; those that failed are left out."""
    calls: list[Call] = []
    unfinished: dict[str, Call] = {}
    for number, line in enumerate(lines):
        if resumed := _RESUMED.match(line):
            call = unfinished.pop(resumed["pid"])
            text = resumed["text"]
        elif begun := _BEGIN.match(line):
            text = begun["text"]
            target = _FIRST_FD.match(text)
            call = Call(
                name=begun["name"],
                target=target["target"] if target else "",
                strings=[_unescape(string) for string in _STRING.findall(text)],
                begin=number,
            )
            calls.append(call)
            if text.endswith("<unfinished ...>"):
                unfinished[begun["pid"]] = call
                continue
        else:
            continue
        result = _RESULT.search(text)
        if result and int(result["result"]) >= 0:
            call.end = number
        elif result:
            calls.remove(call)
    return calls


def _unescape(text: str) -> bytes:
    return text.encode("latin-1").decode("unicode_escape").encode("latin-1")


def breaches(calls: Sequence[Call], submitted: Mapping[str, Path | None], database: Path) -> list[str]:
    """What was answered too early, a line each.

    `submitted` names the jobs by id, each with the file of its bytes if it has one. A 202 may leave the process only
    when the row's transaction is synced to the log of `database`; and when the row is written, its file must be synced
    and in place, and so must each directory that was made for it.
    """
    answers = {found["id"].decode(): call for call in calls for found in _accepted(call)}
    log = f"{database}-wal"
    log_writes = [call for call in calls if call.target == log and call.name.startswith(("pwrite", "write"))]
    log_syncs = [call for call in calls if call.target == log and call.name in ("fdatasync", "fsync")]
    found = []
    for job_id, file in submitted.items():
        if (answer := answers.get(job_id)) is None:
            found.append(f"{job_id}: no 202 in the trace")
            continue
        row = next((call for call in log_writes if job_id.encode() in b"".join(call.strings)), None)
        if row is None or row.begin > answer.begin:
            found.append(f"{job_id}: answered before its row was written")
            continue
        # A transaction is written as a whole before it is synced, so the first sync that begins after this is its.
        sync = next((call for call in log_syncs if row.ended_before(call.begin)), None)
        if sync is None or not sync.ended_before(answer.begin):
            found.append(f"{job_id}: answered before its row was synced")
        if file is not None:
            found += [f"{job_id}: {what}" for what in _file_breaches(calls, file, row.begin)]
        found += [f"{job_id}: {what}" for what in _directory_breaches(calls, file or database, row.begin)]
    return found


def _accepted(call: Call) -> Iterator[re.Match[bytes]]:
    if call.target.startswith(("TCP", "UNIX")):
        yield from _ACCEPTED.finditer(b"".join(call.strings))


def _file_breaches(calls: Sequence[Call], file: Path, moment: int) -> Iterator[str]:
    """What is missing before `moment` to make `file` survive a power cut."""
    renamed = next((call for call in calls if call.name.startswith("rename") and call.strings[-1] == bytes(file)), None)
    if renamed is None or not renamed.ended_before(moment):
        yield "row written before its file was in place"
        return
    source = renamed.strings[0].decode()
    written = [call for call in calls if call.target == source and "write" in call.name and call.begin < renamed.begin]
    if not any(
        call.target == source
        and call.name in ("fsync", "fdatasync")
        and call.ended_before(renamed.begin)
        and all(write.ended_before(call.begin) for write in written)
        for call in calls
    ):
        yield "its file was put in place before it was synced"
    if not _synced(calls, file.parent, after=renamed, before=moment):
        yield "row written before the directory of its file was synced"


def _directory_breaches(calls: Sequence[Call], file: Path, moment: int) -> Iterator[str]:
    ancestors = {bytes(directory) for directory in file.parents}
    for made in calls:
        if made.name.startswith("mkdir") and made.strings[-1] in ancestors:
            directory = Path(made.strings[-1].decode())
            if not _synced(calls, directory.parent, after=made, before=moment):
                yield f"row written before the new directory {directory} was synced into {directory.parent}"


def _synced(calls: Sequence[Call], directory: Path, *, after: Call, before: int) -> bool:
    return any(
        call.name == "fsync"
        and call.target == str(directory)
        and after.ended_before(call.begin)
        and call.ended_before(before)
        for call in calls
    )
