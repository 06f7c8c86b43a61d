"""Every client command against a running service: what it prints, writes and exits with."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path

import pytest
import requests

from tests.hostile_plugins import install

from .conftest import RunningService, cli, running_service

pytestmark = pytest.mark.xdist_group("cli")
JOB_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")


def submitted(service: RunningService, *arguments: str | Path) -> str:
    """The id of a job that `submit` made."""
    done = service.cli("submit", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def failed_job(service: RunningService) -> str:
    return submitted(service, "--plugin", "sleep", "--field", "seconds=30", "--timeout-s", "0.3")


def test_submit_prints_the_id_and_nothing_else(service: RunningService) -> None:
    done = service.cli("submit", "photo.jpg", "--plugin", "image_info")
    assert (done.returncode, done.stderr) == (0, "")
    assert JOB_ID.fullmatch(done.stdout.strip())


def test_submit_waits_for_the_result_of_a_picture(service: RunningService) -> None:
    done = service.cli("submit", "label.png", "--plugin", "barcode", "--wait")
    assert done.returncode == 0, done.stderr
    texts = {code["text"] for code in json.loads(done.stdout)["codes"]}
    assert texts == {"https://example.com/parcel/4711", "4006381333931", "PARCEL-2026-0042"}


def test_a_file_is_typed_by_its_first_bytes_before_its_name(service: RunningService) -> None:
    misnamed = service.folder / "misnamed.txt"
    misnamed.write_bytes((service.folder / "photo.jpg").read_bytes())
    done = service.cli("submit", misnamed, "--plugin", "image_info", "--wait", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["payload"]["mime_type"] == "image/jpeg"
    assert record["result"]["width"] == 1280


def test_the_media_type_that_was_said_is_the_one(service: RunningService) -> None:
    done = service.cli("submit", "photo.jpg", "--plugin", "image_info", "--mime-type", "image/x-mine", "--json")
    assert json.loads(done.stdout)["payload"]["mime_type"] == "image/x-mine", done.stderr


def test_submit_reads_standard_input(service: RunningService) -> None:
    picture = (service.folder / "photo.jpg").read_bytes()
    done = service.cli("submit", "-", "--plugin", "image_info", "--wait", stdin=picture)
    assert json.loads(done.stdout)["height"] == 960


def test_fields_become_values_by_the_schema(service: RunningService) -> None:
    small = service.folder / f"{uuid.uuid4().hex}.png"
    done = service.cli(
        *("submit", "photo.jpg", "--plugin", "thumbnail", "--field", "width=64", "-f", "format=png"),
        *("--wait", "--output", small),
    )
    assert done.returncode == 0, done.stderr
    assert small.read_bytes().startswith(b"\x89PNG")
    assert str(small) in re.sub(r"\s", "", done.stderr)
    assert done.stdout == ""


def test_a_json_file_is_the_whole_payload(service: RunningService) -> None:
    (service.folder / "payload.json").write_text('{"deep": {"er": [1, null, "é"]}}')
    done = service.cli("submit", "payload.json", "--plugin", "echo", "--wait")
    assert json.loads(done.stdout) == {"deep": {"er": [1, None, "é"]}}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_json_file_may_be_written_as_windows_does(service: RunningService, encoding: str) -> None:
    (service.folder / "windows.json").write_text('{"deep": "é"}', encoding=encoding)
    done = service.cli("submit", "windows.json", "--plugin", "echo", "--wait")
    assert json.loads(done.stdout) == {"deep": "é"}


def test_a_json_file_that_nests_too_deep_is_refused_by_its_name(service: RunningService) -> None:
    (service.folder / "deep.json").write_text('{"a":' * 3000 + "1" + "}" * 3000)
    done = service.cli("submit", "deep.json", "--plugin", "echo")
    assert done.returncode == 2
    assert done.stderr == "jobservice: deep.json is not JSON that can be sent: nested deeper than 64 levels.\n"


def test_a_file_whose_name_begins_with_a_hyphen_is_sent(service: RunningService) -> None:
    (service.folder / "-dash.json").write_text('{"a": 1}')
    done = service.cli("submit", "./-dash.json", "--plugin", "echo", "--wait")
    assert (json.loads(done.stdout), done.stderr) == ({"a": 1}, "")


def test_a_terminal_without_the_letter_is_shown_which_one_it_is(service: RunningService) -> None:
    job_id = submitted(service, "--plugin", "echo", "--payload", '{"a": "Ü"}')
    shown = service.cli("show", job_id, "--wait", PYTHONIOENCODING="ascii")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert r'{"a": "\xdc"}' in shown.stdout
    record = service.cli("show", job_id, "--json", PYTHONIOENCODING="ascii")
    assert json.loads(record.stdout)["payload"] == {"a": "Ü"}


def test_options_reach_the_record(service: RunningService) -> None:
    options = ("--priority", "7", "--tag", "a", "--tag", "b c", "--metadata", '{"order": 17}')
    for way in (("--payload", "{}"), ("photo.jpg",)):
        done = service.cli("submit", *way, "--plugin", "echo", *options, "--json")
        assert done.returncode == 0, done.stderr
        record = json.loads(done.stdout)
        assert (record["priority"], record["tags"], record["metadata"]) == (7, ["a", "b c"], {"order": 17})


def test_the_same_key_makes_one_job(service: RunningService) -> None:
    key = uuid.uuid4().hex
    arguments = ("--plugin", "echo", "--payload", '{"n": 1}', "--idempotency-key", key)
    assert submitted(service, *arguments) == submitted(service, *arguments)


def test_a_failed_job_is_exit_code_1_and_told_with_its_type(service: RunningService) -> None:
    done = service.cli("submit", "--plugin", "sleep", "--field", "seconds=30", "--timeout-s", "0.3", "--wait")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "is FAILED: TimeLimitExceeded: " in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_a_failed_job_as_json_is_its_record_on_stdout(service: RunningService) -> None:
    done = service.cli("result", failed_job(service), "--wait", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["type"] == "TimeLimitExceeded"


def test_show_tells_everything_and_a_failure_is_only_data(service: RunningService) -> None:
    job_id = failed_job(service)
    waited = service.cli("show", job_id, "--wait")
    shown = service.cli("show", job_id)
    assert (waited.returncode, shown.returncode) == (1, 0)
    assert waited.stdout == shown.stdout
    for piece in (job_id, "FAILED", "TimeLimitExceeded", '"seconds": 30'):
        assert piece in shown.stdout


def test_what_was_raised_is_told_with_its_class_and_where(tmp_path: Path) -> None:
    told = {
        "raises": "ExecutionError: ValueError: a wrong value",
        "stop_iteration": "ExecutionError: StopIteration: 1",
        "setup_raises": "PluginError in set-up: RuntimeError: no model",
    }
    with running_service(tmp_path, PYTHONPATH=str(install(tmp_path, told))) as service:
        for plugin, error in told.items():
            waited = service.cli("submit", "--plugin", plugin, "--wait")
            assert waited.stderr.endswith(f" is FAILED: {error}\n")
        listed = service.cli("jobs").stdout
        for error in told.values():
            assert error in listed
        shown = service.cli("show", listed.splitlines()[1].split()[0]).stdout
        assert told["setup_raises"] in shown


def test_show_as_json_is_the_record(service: RunningService) -> None:
    job_id = submitted(service, "--plugin", "echo", "--payload", '{"a": 1}')
    record = json.loads(service.cli("show", job_id, "--wait", "--json").stdout)
    assert (record["id"], record["status"], record["result"]) == (job_id, "SUCCESS", {"a": 1})


def test_result_is_bytes_for_a_file_and_json_for_anything_else(service: RunningService) -> None:
    thumbnail = submitted(service, "photo.jpg", "--plugin", "thumbnail")
    small = service.folder / "small.jpg"
    assert service.cli("result", thumbnail, "--wait", "-o", small).returncode == 0
    assert small.read_bytes().startswith(b"\xff\xd8\xff")
    record = json.loads(service.cli("result", thumbnail, "--json").stdout)
    assert record["result"]["image"]["size"] == small.stat().st_size
    echoed = submitted(service, "--plugin", "echo", "--payload", '{"a": [1]}')
    assert json.loads(service.cli("result", echoed, "--wait").stdout) == {"a": [1]}


def test_result_of_an_unfinished_job_says_how_to_wait(service: RunningService) -> None:
    job_id = submitted(service, "--plugin", "sleep", "--field", "seconds=60")
    done = service.cli("result", job_id)
    assert done.returncode == 2
    assert "--wait" in done.stderr
    service.cli("cancel", job_id)


def test_cancel_stops_a_running_job(service: RunningService) -> None:
    job_id = submitted(service, "--plugin", "sleep", "--field", "seconds=60")
    done = service.cli("cancel", job_id)
    assert done.returncode == 0, done.stderr
    assert job_id in done.stdout
    ended = service.cli("show", job_id, "--wait", "--json")
    assert (ended.returncode, json.loads(ended.stdout)["status"]) == (1, "CANCELLED")
    assert json.loads(service.cli("cancel", job_id, "--json").stdout)["status"] == "CANCELLED"


def test_cancel_of_an_ended_job_is_refused(service: RunningService) -> None:
    job_id = submitted(service, "--plugin", "echo", "--payload", "{}")
    service.cli("show", job_id, "--wait")
    done = service.cli("cancel", job_id)
    assert done.returncode == 2
    assert "SUCCESS" in done.stderr


def test_jobs_lists_newest_first_with_whole_ids(service: RunningService) -> None:
    tag = uuid.uuid4().hex
    made = [submitted(service, "--plugin", "echo", "--payload", "{}", "--tag", tag) for _ in range(3)]
    done = service.cli("jobs", "--tag", tag)
    header, *rows = done.stdout.splitlines()
    assert header.startswith("id ")
    assert [row.split()[0] for row in rows] == made[::-1]
    as_json = json.loads(service.cli("jobs", "--tag", tag, "--limit", "2", "--json").stdout)
    assert [job["id"] for job in as_json] == made[:0:-1]


def test_jobs_can_be_filtered_by_status_and_error(service: RunningService) -> None:
    job_id = failed_job(service)
    service.cli("show", job_id, "--wait")
    done = service.cli("jobs", "--status", "failed", "--error-type", "TimeLimitExceeded", "--json")
    found = json.loads(done.stdout)
    assert job_id in [job["id"] for job in found]
    assert {job["status"] for job in found} == {"FAILED"}


def test_plugins_lists_what_is_installed_and_shows_what_one_takes(service: RunningService) -> None:
    listed = service.cli("plugins")
    assert listed.returncode == 0
    for name in ("barcode", "echo", "image_info", "ocr", "shout", "sleep", "thumbnail"):
        assert re.search(rf"^{name} ", listed.stdout, re.MULTILINE)
    assert '"seconds"' in service.cli("plugins", "sleep").stdout
    schema = json.loads(service.cli("plugins", "sleep", "--json").stdout)["input_schema"]
    assert "seconds" in schema["properties"]
    assert {plugin["name"] for plugin in json.loads(service.cli("plugins", "--json").stdout)} >= {"ocr", "shout"}


def test_text_of_others_cannot_steer_the_terminal(service: RunningService) -> None:
    payload = json.dumps({"text": "\x1b]0;owned\x07\x9b2J\u202egnp"})
    job_id = submitted(service, "--plugin", "echo", "--payload", payload)
    done = service.cli("show", job_id, "--wait")
    assert done.returncode == 0
    assert "owned" in done.stdout
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", done.stdout)


def test_a_result_for_a_pipe_is_exact(service: RunningService) -> None:
    payload = {"text": "\x1b]0;\x07\x9b2J\u202egnp", "numbers": [0.1, 2**63 - 1], "long": ["é" * 60, "b" * 60]}
    done = service.cli("submit", "--plugin", "echo", "--payload", json.dumps(payload), "--wait")
    assert json.loads(done.stdout) == payload


def test_a_result_that_cannot_be_written_is_not_lost(service: RunningService) -> None:
    done = service.cli("submit", "photo.jpg", "--plugin", "thumbnail", "--wait", "-o", "/dev/full")
    assert done.returncode == 2
    again = re.search(r"jobservice (result \S+) --output", done.stderr)
    assert again
    assert service.cli(*again[1].split(), "-o", "found.jpg").returncode == 0


def test_a_result_that_there_is_no_room_for_leaves_the_file_that_was_there(service: RunningService) -> None:
    target = service.folder / "small.jpg"
    target.write_bytes(b"what was there")
    done = cli(
        *("submit", "photo.jpg", "--plugin", "thumbnail", "--wait", "-o", target.name),
        cwd=service.folder,
        prefix=["sh", "-c", 'ulimit -f 1; exec "$@"', "sh"],
        **service.environment,
    )
    assert (done.returncode, "Cannot write small.jpg" in done.stderr) == (2, True)
    assert target.read_bytes() == b"what was there"
    assert [path.name for path in service.folder.iterdir() if path.name.endswith(".part")] == []


def test_a_result_in_place_of_a_file_leaves_links_and_rights_as_they_are(service: RunningService) -> None:
    target, link = service.folder / "private.jpg", service.folder / "link.jpg"
    target.touch(mode=0o600)
    link.symlink_to(target.name)
    assert service.cli("submit", "photo.jpg", "--plugin", "thumbnail", "--wait", "-o", link.name).returncode == 0
    assert (link.is_symlink(), target.stat().st_mode & 0o777) == (True, 0o600)
    assert target.stat().st_size > 1_000


def test_a_result_for_standard_output_goes_where_that_goes(service: RunningService) -> None:
    job_id = submitted(service, "--plugin", "echo", "--payload", '{"n": 1}')
    assert service.cli("show", job_id, "--wait").returncode == 0
    written = service.folder / "all.txt"
    done = cli(
        *("result", job_id, "-o", "/dev/stdout"),
        cwd=service.folder,
        prefix=["sh", "-c", '{ "$@"; echo end; } >> all.txt', "sh"],
        **service.environment,
    )
    assert done.returncode == 0, done.stderr
    assert written.read_text().endswith('{"n": 1}\nend\n')


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("missing/out", "--output missing/out: there is no folder missing."),
        ("photo.jpg/out", "--output photo.jpg/out: there is no folder photo.jpg."),
        ("site", "--output site is a folder: name a file in it."),
    ],
)
@pytest.mark.parametrize(
    "command",
    [("submit", "photo.jpg", "--plugin", "nope", "--wait"), ("retry", "nope", "--wait"), ("result", "nope")],
    ids=lambda command: command[0],
)
def test_an_output_that_cannot_be_is_told_before_anything_is_sent(
    service: RunningService, command: tuple[str, ...], output: str, told: str
) -> None:
    # The service would refuse each of them.
    done = service.cli(*command, "--output", output)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"jobservice: {told}\n")


def test_json_that_is_sent_as_a_file_is_refused_with_how_it_is_sent(service: RunningService) -> None:
    for name in ("seconds.JSON", "seconds.txt"):
        (service.folder / name).write_text('{"seconds": 0}')
    assert service.cli("submit", "seconds.JSON", "--plugin", "sleep", "--wait").returncode == 0
    for arguments, stdin in ((("seconds.txt",), b""), (("-",), b'{"seconds": 0}')):
        done = service.cli("submit", *arguments, "--plugin", "sleep", stdin=stdin)
        assert done.returncode == 2
        assert "JSON is sent with --payload, or as a FILE that ends in .json." in done.stderr


REFUSED = {
    "unknown plugin": (("submit", "photo.jpg", "--plugin", "nope"), "nope"),
    "unknown plugin, JSON": (("submit", "--payload", "{}", "--plugin", "nope"), "nope"),
    "field of the wrong type": (("submit", "--plugin", "sleep", "--field", "seconds=long"), "/seconds"),
    "unknown field": (("submit", "--plugin", "sleep", "--field", "second=1"), "second"),
    "no image": (("submit", "--plugin", "ocr", "--payload", "{}"), "image"),
    "unknown job": (("show", "01890000-0000-7000-8000-000000000000"), "01890000-0000-7000-8000-000000000000"),
    "no id": (("show", "../plugins"), "plugins"),
    "priority out of range": (("submit", "--plugin", "echo", "--payload", "{}", "--priority", "1000"), "priority"),
    "no time": (("submit", "--plugin", "echo", "--payload", "{}", "--run-at", "tomorrow"), "run_at"),
    "missing file": (("submit", "missing.png", "--plugin", "ocr"), "missing.png"),
    "folder without files": (("submit", "site", "--plugin", "ocr", "--match", "*.png"), "site"),
    "field without value": (("submit", "--plugin", "sleep", "--field", "seconds"), "NAME=VALUE"),
    "payload no JSON": (("submit", "--plugin", "echo", "--payload", "{"), "--payload"),
    "payload no object": (("submit", "--plugin", "echo", "--payload", "[]"), "--payload"),
    "payload with NaN": (("submit", "--plugin", "echo", "--payload", '{"a":NaN}'), "--payload is not JSON that can be"),
    "payload with an infinity": (("submit", "--plugin", "echo", "--payload", '{"a":1e999}'), "/a: the number is too"),
    "payload with a key twice": (("submit", "-p", "echo", "--payload", '{"a":1,"a":2}'), "/a: the key is given twice"),
    "payload with a long integer": (("submit", "-p", "echo", "--payload", '{"a":99999999999999999999999}'), "/a: "),
    "payload with half a character": (("submit", "-p", "echo", "--payload", '{"a":"\\ud800"}'), "/a: text must not"),
    "metadata with a long integer": (
        ("submit", "-p", "echo", "--payload", "{}", "--metadata", '{"a":99999999999999999999999}'),
        "--metadata is not JSON that can be sent: /a: integers must fit into 64 bits",
    ),
    "schedule with NaN": (("schedules", "create", "n", "-p", "echo", "--every-s", "9", "--payload", '{"a":NaN}'), "/a"),
    "file and payload": (("submit", "photo.jpg", "--plugin", "echo", "--payload", "{}"), "FILE"),
    "payload and field": (("submit", "--plugin", "echo", "--payload", "{}", "--field", "a=1"), "--field"),
    "output without wait": (("submit", "photo.jpg", "--plugin", "thumbnail", "-o", "x.jpg"), "--wait"),
    "no plugin": (("submit", "photo.jpg"), "--plugin"),
    "unknown option of submit": (("submit", "--colour", "-p", "echo"), "--colour"),
    "unknown option": (("jobs", "--colour"), "--colour"),
    "unknown command": (("job",), "job"),
    "unknown type of events": (("watch", "--type", "nonsense"), 'Choose from: "submitted"'),
    "unknown status": (("jobs", "--status", "done"), "done"),
    "no address": (("jobs", "--url", "localhost"), "--url"),
    "field twice": (("submit", "-p", "echo", "-f", "text=x", "-f", "text=y"), "--field text is given twice"),
    "field of the file": (
        ("submit", "photo.jpg", "-p", "image_info", "-f", "image=abc"),
        "--field image: FILE is this field already",
    ),
    "file for a plugin without one": (("submit", "photo.jpg", "-p", "sleep"), "sleep has no single bytes field to put"),
    "broken priority": (("submit", "-p", "echo", "--priority", "5.7"), "--priority '5.7': give a whole number"),
    "broken limit": (("jobs", "--limit", "1.9"), "--limit '1.9': give a whole number"),
    "endless priority": (("submit", "-p", "echo", "--priority", "9" * 30), "at most 18 digits"),
    "broken attempts": (("submit", "-p", "echo", "--max-attempts=2.9"), "--max-attempts '2.9': give a whole number"),
    "broken interval": (("schedules", "create", "x", "-p", "echo", "--every-s", "90.7"), "--every-s '90.7'"),
    "no number": (("submit", "-p", "echo", "--timeout-s", "nan"), "--timeout-s 'nan': give a number."),
    "no end": (("submit", "-p", "echo", "--timeout-s", "inf"), "/job.timeout_s: numbers must be finite"),
    "no media type": (("submit", "photo.jpg", "-p", "echo", "--mime-type", "nonsense"), "write it like image/png."),
    "lines of a media type": (
        ("submit", "photo.jpg", "-p", "echo", "--mime-type", "a/b\nc"),
        "--mime-type 'a/b\\nc': ",
    ),
    "lines of a key": (("submit", "-p", "echo", "--idempotency-key", "a\nb"), "--idempotency-key 'a\\nb': give 1 to"),
    "lines of an API key": (("jobs", "--api-key", "a\nb"), "--api-key (JOBSERVICE_API_KEY): there is a line break"),
    "field no text": (("submit", "-p", "echo", "--field", "a=x\udcffy"), r"--field 'a=x\udcffy': that is not UTF-8"),
    "tag no text": (("submit", "-p", "echo", "--tag", "\udcff"), r"--tag '\udcff': that is not UTF-8 text."),
    "unknown file with a hyphen": (("submit", "-p", "echo", "--", "-dash"), "A file of that name is ./-dash"),
    "empty id to show": (("show", ""), "ID is empty: is a variable not set?"),
    "empty id to watch": (("watch", ""), "ID is empty"),
    "empty id to cancel": (("cancel", ""), "ID is empty"),
    "empty file": (("submit", "", "-p", "echo"), "FILE is empty"),
    "empty plugin": (("submit", "photo.jpg", "--plugin", ""), "--plugin is empty"),
    "empty run": (("submit", "site", "-p", "echo", "--run", ""), "--run is empty"),
    "empty match": (("submit", "site", "-p", "echo", "--match", ""), "--match is empty"),
    "empty columns": (("report", "jobs", "--columns", ""), "--columns is empty"),
    "empty key": (("submit", "-p", "echo", "--idempotency-key", ""), "--idempotency-key is empty"),
    "empty output": (("result", "x", "-o", ""), "--output is empty"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_named_in_two_lines_with_exit_code_2(service: RunningService, case: str) -> None:
    arguments, named = REFUSED[case]
    done = service.cli(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert named in done.stderr
    assert 1 <= len(done.stderr.splitlines()) <= 2, done.stderr


def test_a_refusal_as_json_carries_the_problem(service: RunningService) -> None:
    done = service.cli("submit", "--plugin", "sleep", "--field", "seconds=long", "--json")
    told = json.loads(done.stderr)
    assert (done.returncode, told["exit_code"], told["problem"]["status"]) == (2, 2, 422)
    assert told["problem"]["errors"][0]["pointer"] == "/seconds"


def test_a_file_too_large_for_the_service_is_refused_and_not_called_unreachable(service: RunningService) -> None:
    large = service.folder / "large.bin"
    with large.open("wb") as file:
        file.truncate(60_000_000)
    done = service.cli("submit", large, "--plugin", "image_info")
    assert done.returncode == 2, done.stderr
    assert "JOBSERVICE_MAX_BODY_MB" in done.stderr


def test_a_job_that_waits_says_for_what(service: RunningService) -> None:
    times = ("--run-at", "2100-01-01T00:00:00Z", "--expires-at", "2100-01-02T00:00:00Z")
    job_id = service.cli("submit", "--plugin", "echo", "--payload", "{}", *times).stdout.strip()
    shown = dict(line.split(None, 1) for line in service.cli("show", job_id).stdout.splitlines())
    assert shown["waits"] == "until 2100-01-01 00:00:00"
    assert shown["expires"] == "2100-01-02 00:00:00"
    service.cli("cancel", job_id)


def test_what_holds_a_plugin_back_is_told_with_the_plugin_and_with_its_waiting_jobs(tmp_path: Path) -> None:
    def said(service: RunningService, *arguments: str) -> str:
        done = service.cli(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with running_service(tmp_path) as service:
        shout = f"{service.url}/v1/plugins/shout"
        requests.post(f"{shout}/pause", json={"reason": "a new model"}, timeout=30).raise_for_status()
        job_id = submitted(service, "--plugin", "shout", "--field", "text=hello")
        assert "for 0 others, plugin shout is paused (a new model)" in said(service, "show", job_id)
        requests.put(f"{shout}/limits", json={"concurrency": 2, "rate_per_s": 0.5}, timeout=30).raise_for_status()
        requests.post(f"{shout}/pause", json={"intake": True}, timeout=30).raise_for_status()
        told = "paused and takes no new jobs, limited to 2 at once and 0.5 a second"
        assert re.search(rf"^shout .* {told}$", said(service, "plugins"), re.MULTILINE)
        assert re.search(rf"^control +{told}$", said(service, "plugins", "shout"), re.MULTILINE)
        assert "control" not in said(service, "plugins", "echo")
    with running_service(tmp_path, PYTHONPATH="") as service:
        assert "for 0 others, plugin shout is not installed here" in said(service, "show", job_id)
