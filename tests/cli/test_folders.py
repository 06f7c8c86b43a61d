"""Whole folders through `jobservice submit`: each file one job, whoever is killed in between."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from PIL import Image

from service.cli.app import run
from service.client import Client

from .conftest import COMMAND, WAIT_S, RunningService, cli, running_service, wait_until
from .relays import holding

pytestmark = pytest.mark.xdist_group("cli")


def make_pictures(folder: Path, count: int) -> Path:
    """A folder of so many small pictures, each a different one."""
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (12, 9), (number % 256, number // 256, 80)).save(folder / f"{number:03d}.png")
    return folder


@contextlib.contextmanager
def submitting(service: RunningService, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """`submit` while it goes on."""
    with subprocess.Popen(
        [*COMMAND, "submit", *map(str, arguments)],
        cwd=service.folder,
        env=service.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def job_rows(service: RunningService, plugin: str) -> dict[str, int]:
    """How many jobs of a plugin are in each status, read beside the service."""
    with contextlib.closing(sqlite3.connect(f"{(service.data_dir / 'jobs.db').as_uri()}?mode=ro", uri=True)) as file:
        return dict(file.execute("SELECT status, count(*) FROM jobs WHERE plugin = ? GROUP BY 1", [plugin]))


def submitted(service: RunningService, *arguments: str | Path) -> list[dict[str, object]]:
    """What `submit --json` says of each file."""
    done = service.cli("submit", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


def test_five_hundred_pictures_outlive_the_death_of_the_service(own_service: RunningService) -> None:
    pictures = make_pictures(own_service.folder / "pictures", 500)
    small = own_service.folder / "small"
    arguments = (pictures, "--plugin", "thumbnail", "--field", "width=4", "--wait", "--output", small, "--json")
    with submitting(own_service, *arguments) as command:
        wait_until(lambda: job_rows(own_service, "thumbnail").get("SUCCESS", 0) >= 100)
        own_service.process.kill()
        own_service.process.wait()
        before = job_rows(own_service, "thumbnail")
        with running_service(own_service.folder, port=int(own_service.url.rpartition(":")[2])) as again:
            out, told = command.communicate(timeout=WAIT_S)
            assert job_rows(again, "thumbnail") == {"SUCCESS": 500}
    assert before["SUCCESS"] < 500
    assert command.returncode == 0, told
    assert "Waiting up to 300 s for it to come back." in told
    assert "The service answers again." in told
    found = json.loads(out)
    assert [outcome["file"] for outcome in found] == [f"{number:03d}.png" for number in range(500)]
    assert len({outcome["job"]["id"] for outcome in found}) == 500
    assert sorted(path.name for path in small.iterdir()) == [f"{number:03d}.png.jpg" for number in range(500)]
    with Image.open(small / "499.png.jpg") as picture:
        assert picture.size == (4, 3)


def test_the_same_command_goes_on_where_a_killed_one_stopped(own_service: RunningService) -> None:
    pictures = make_pictures(own_service.folder / "pictures", 200)
    arguments = (pictures, "--plugin", "image_info", "--wait")
    with submitting(own_service, *arguments) as command:
        wait_until(lambda: sum(job_rows(own_service, "image_info").values()) >= 20)
        command.send_signal(signal.SIGKILL)
    first = submitted(own_service, *arguments)
    assert job_rows(own_service, "image_info") == {"SUCCESS": 200}
    # Nor does it afterwards: the same files are the same jobs, and another run makes others.
    assert [outcome["job"]["id"] for outcome in submitted(own_service, *arguments)] == [
        outcome["job"]["id"] for outcome in first
    ]
    assert job_rows(own_service, "image_info") == {"SUCCESS": 200}
    submitted(own_service, *arguments, "--run", "second")
    assert job_rows(own_service, "image_info") == {"SUCCESS": 400}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with folders, hidden files and files of several kinds."""
    for name in ("b.txt", "a.bin", ".hidden.txt", "deep/c.txt", "deep/er/d.txt", ".git/e.txt", "out/f.txt"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(tmp_path / name))
    (tmp_path / "tree/linked").symlink_to(tmp_path / "tree/deep", target_is_directory=True)
    return tmp_path / "tree"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), ["a.bin", "b.txt"]),
        (("--match", "*.txt"), ["b.txt"]),
        (("-r", "--match", "*.bin", "--match", "deep/*.txt"), ["a.bin", "deep/c.txt"]),
        (("-r", "--wait", "--output", "tree/out"), ["a.bin", "b.txt", "deep/c.txt", "deep/er/d.txt"]),
    ],
)
def test_the_files_of_a_folder_are_chosen(
    service: RunningService, tree: Path, options: tuple[str, ...], expected: list[str]
) -> None:
    options = tuple(option.replace("tree", str(tree)) for option in options)
    found = submitted(service, tree, "--plugin", "echo", *options)
    assert [outcome["file"] for outcome in found] == expected
    if "--output" in options:
        assert (tree / "out/deep/er/d.txt.txt").read_bytes() == (tree / "deep/er/d.txt").read_bytes()


def test_a_json_file_is_a_payload_and_the_key_is_of_all_that_is_sent(service: RunningService, tmp_path: Path) -> None:
    folder = tmp_path / "payloads"
    folder.mkdir()
    (folder / "one.json").write_text(json.dumps({"of": str(tmp_path)}))
    (folder / "two.json").write_text(json.dumps({"of": str(tmp_path)}))
    ids = set()
    for options in ((), ("--tag", "a"), ("--run", "x"), ("--tag", "a")):
        found = submitted(service, folder, "--plugin", "echo", "--wait", *options)
        ids |= {outcome["job"]["id"] for outcome in found}
        assert [outcome["job"]["result"] for outcome in found] == [{"of": str(tmp_path)}] * 2
    assert len(ids) == 6


def test_what_became_of_each_file_is_a_table_and_the_worst_is_the_exit_code(
    service: RunningService, tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "bad.json").write_text("{")
    (folder / "good.json").write_text('{"seconds": 0}')
    (folder / "late.json").write_text('{"seconds": 30}')
    (folder / "wrong.json").write_text('{"seconds": "long"}')
    arguments = ("submit", folder, "--plugin", "sleep", "--timeout-s", "0.3", "--wait")
    done = service.cli(*arguments)
    rows = {line.split()[0]: line for line in done.stdout.splitlines()[1:]}
    assert done.returncode == 2
    assert "SUCCESS" in rows["good.json"]
    assert "FAILED" in rows["late.json"]
    assert "TimeLimitExceeded" in rows["late.json"]
    assert "refused" in rows["bad.json"]
    assert "/seconds" in rows["wrong.json"]
    assert done.stderr.splitlines()[-1] == "4 files: 1 FAILED, 1 SUCCESS, 2 refused."
    failed = service.cli(*arguments, "--match", "late.json")
    assert (failed.returncode, failed.stderr.strip()) == (1, "1 files: 1 FAILED.")


def test_what_cannot_be_read_is_told_and_stops_no_other(service: RunningService, tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "pictures", 1)
    (folder / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "pipe.png")
    done = service.cli("submit", folder, "--plugin", "image_info")
    assert done.returncode == 2
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["file", "000.png", "gone.png", "pipe.png"]
    assert f"gone.png: Cannot read {folder}/gone.png: no such file or directory." in done.stderr
    assert f"pipe.png: Cannot read {folder}/pipe.png: it is no file." in done.stderr


def test_a_result_that_cannot_be_written_stops_no_other(service: RunningService, tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "pictures", 3)
    long_name = "0" * 251 + ".png"
    (folder / "000.png").rename(folder / long_name)
    done = service.cli("submit", folder, "--plugin", "thumbnail", "--wait", "--output", tmp_path / "small", "--json")
    assert done.returncode == 2
    long, *others = json.loads(done.stdout)
    assert (long["file"], long["job"]["status"], long["output"]) == (long_name, "SUCCESS", None)
    assert long["refusal"]["message"].endswith(": file name too long. The service keeps the results.")
    assert [outcome["output"] for outcome in others] == [f"{tmp_path}/small/{n}.png.jpg" for n in ("001", "002")]
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == ["001.png.jpg", "002.png.jpg"]
    assert done.stderr.splitlines()[-1] == "3 files: 3 SUCCESS, 1 without their result."


def test_results_that_are_kept_no_longer_are_told_one_by_one(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "pictures", 2)
    arguments = ("submit", folder, "--plugin", "thumbnail", "--wait", "--json")
    with running_service(tmp_path, JOBSERVICE_KEEP_RESULT_BYTES_DAYS="0") as service:
        jobs = [outcome["job"]["id"] for outcome in json.loads(service.cli(*arguments).stdout)]
        results = [f"{service.url}/v1/jobs/{job}/result" for job in jobs]
        wait_until(lambda: all(requests.get(result, timeout=30).status_code == 410 for result in results))
        done = service.cli(*arguments, "--output", tmp_path / "small")
    assert done.returncode == 2
    for name, outcome in zip(("000.png", "001.png"), json.loads(done.stdout), strict=True):
        assert (outcome["file"], outcome["job"]["status"]) == (name, "SUCCESS")
        assert outcome["refusal"]["problem"]["status"] == 410
    assert done.stderr.splitlines()[-1] == "2 files: 2 SUCCESS, 2 without their result."


async def test_a_job_that_is_deleted_while_it_is_waited_for_stops_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "payloads"
    folder.mkdir()
    for name in ("gone", "kept"):
        (folder / f"{name}.json").write_text(json.dumps({"name": name}))

    async def delete(number: int) -> None:
        if number != 3:  # behind the submissions
            return
        async with Client(service.url) as client:
            ended = [await client.wait(job.id) async for job in client.jobs()]
        (gone,) = (job.id for job in ended if job.payload == {"name": "gone"})
        await asyncio.to_thread(requests.delete, f"{service.url}/v1/jobs/{gone}", timeout=30)

    with running_service(tmp_path, JOBSERVICE_MAX_STREAMS="0") as service:
        async with holding(service.url, delete) as url:
            arguments = ("submit", folder, "--plugin", "echo", "--wait", "--output", tmp_path / "results")
            done = await asyncio.to_thread(service.cli, *arguments, JOBSERVICE_URL=url)
    assert done.returncode == 2, done.stderr
    _, gone, kept = done.stdout.splitlines()
    assert (gone.split()[2], kept.split()[2]) == ("deleted", "SUCCESS")
    assert gone.endswith(" was deleted before its end was seen.")
    assert (tmp_path / "results/kept.json.json").exists()
    assert done.stderr.splitlines()[-1] == "2 files: 1 SUCCESS, 1 deleted, 1 without their result."


async def test_whoever_is_in_between_and_says_not_when_to_come_again_is_not_asked_again(tmp_path: Path) -> None:
    asked: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    folder = make_pictures(tmp_path / "pictures", 1)
    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        arguments = ("submit", folder, "--plugin", "thumbnail", "--url", url)
        done = await asyncio.to_thread(cli, *arguments, cwd=tmp_path)
    assert (done.returncode, len(asked)) == (3, 1)
    assert done.stderr == (
        "jobservice: The service cannot do this now (429): 429 Too Many Requests\nTry again later.\n"
    )


def test_without_wait_the_ids_are_told_and_nothing_else(service: RunningService, tmp_path: Path) -> None:
    done = service.cli("submit", make_pictures(tmp_path / "pictures", 3), "--plugin", "image_info")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["file", "000.png", "001.png", "002.png"]


def test_progress_is_drawn_at_a_terminal(service: RunningService, tmp_path: Path) -> None:
    terminal, stderr = pty.openpty()
    command = [*COMMAND, "submit", str(make_pictures(tmp_path / "pictures", 30)), "--plugin", "image_info", "--wait"]
    environment = service.environment | {"TERM": "xterm"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=stderr) as process:
        os.close(stderr)
        drawn = b""
        with contextlib.suppress(OSError):  # how Linux says that the other side is closed
            while piece := os.read(terminal, 4096):
                drawn += piece
    os.close(terminal)
    assert process.returncode == 0
    assert re.search(rb"sent.*30/30", drawn)
    assert re.search(rb"done.*30/30", drawn)
    assert b"30 files: 30 SUCCESS." in drawn


def test_a_service_that_stays_away_is_waited_for_as_long_as_was_said(own_service: RunningService) -> None:
    folder = own_service.folder / "naps"
    folder.mkdir()
    (folder / "nap.json").write_text('{"seconds": 60}')
    with submitting(own_service, folder, "--plugin", "sleep", "--wait", "--patience-s", "1") as command:
        # It has heard that the job was taken, and follows it.
        wait_until(
            lambda: "\njobservice_event_streams 1.0" in requests.get(f"{own_service.url}/metrics", timeout=30).text
        )
        own_service.process.kill()
        _, told = command.communicate(timeout=WAIT_S)
    assert command.returncode == 3
    assert "Waiting up to 1 s" in told
    assert "1 of 1 files are with the service" in told
    assert "Traceback" not in told


def test_ctrl_c_says_that_the_same_command_goes_on(service: RunningService, tmp_path: Path) -> None:
    (tmp_path / "nap.json").write_text(json.dumps({"seconds": 60}))
    before = job_rows(service, "sleep").get("RUNNING", 0)
    with submitting(service, tmp_path, "--plugin", "sleep", "--tag", tmp_path.name, "--wait") as command:
        wait_until(lambda: job_rows(service, "sleep").get("RUNNING", 0) > before)
        command.send_signal(signal.SIGINT)
        _, told = command.communicate(timeout=WAIT_S)
    assert command.returncode == 130
    assert "The same command goes on here." in told
    (job,) = json.loads(service.cli("jobs", "--tag", tmp_path.name, "--json").stdout)
    assert service.cli("cancel", job["id"]).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--plugin", "nope"), "nope"),
        (("--plugin", "echo", "--match", "*.gif"), " for --match '*.gif'."),
        (("--plugin", "echo", "--payload", "{}"), "--payload"),
        (("--plugin", "echo", "--idempotency-key", "k"), "--run"),
        (("--plugin", "echo", "--output", "x"), "--wait"),
        (("--plugin", "nope", "--wait", "--output", "photo.jpg"), "photo.jpg is no folder"),
        (("--plugin", "nope", "--wait", "--output", "photo.jpg/a/b"), "photo.jpg is no folder"),
    ],
)
def test_a_folder_that_cannot_be_sent_is_told_in_two_lines(
    service: RunningService, tmp_path: Path, arguments: tuple[str, ...], named: str
) -> None:
    (tmp_path / "a.png").write_bytes(os.urandom(9))
    done = service.cli("submit", tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr
    assert len(done.stderr.splitlines()) <= 2


@pytest.mark.parametrize(
    ("options", "which"),
    [
        ((), ""),
        (("--match", "*.png"), " for --match '*.png'"),
        (
            ("-r", "--match", "*.png", "--match", "*.gif"),
            " or its folders (--recursive) for --match '*.png' or --match '*.gif'",
        ),
    ],
)
def test_a_folder_without_a_file_is_told_by_what_was_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], which: str
) -> None:
    assert run(("submit", str(tmp_path), "--plugin", "echo", *options)) == 2
    assert capsys.readouterr().err == f"jobservice: There is no file in {tmp_path}{which}.\n"


def test_results_do_not_become_files_of_the_next_run(service: RunningService, tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "pictures", 1)
    arguments = ("submit", folder, "--plugin", "image_info", "--wait", "--output")
    refused = service.cli(*arguments, f"{folder}/../{folder.name}")
    assert (refused.returncode, [path.name for path in folder.iterdir()]) == (2, ["000.png"])
    assert "is the folder itself: the next time its results would be sent too." in refused.stderr
    for _ in range(2):
        for output in (folder / "results", folder):
            told = service.cli(*arguments, output, "--match", "*.png").stderr
            assert told.splitlines()[-1] == "1 files: 1 SUCCESS."


def test_options_of_folders_are_refused_for_a_file(service: RunningService) -> None:
    done = service.cli("submit", "photo.jpg", "--plugin", "image_info", "--recursive")
    assert done.returncode == 2
    assert "--recursive" in done.stderr
