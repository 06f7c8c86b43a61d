"""`keys`, `tenants` and `serve` where it matters who may call."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from service.cli.app import run

from .conftest import COMMAND, RunningService, clean_environment, cli

Here = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], own_logs: None) -> Here:
    """Runs a command in this process: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> tuple[int, str, str]:
        code = run(arguments)
        return code, *capsys.readouterr()

    return command


def test_a_key_is_printed_once_and_never_again(here: Here) -> None:
    code, made, beside = here("keys", "create", "ci", "--role", "read")
    assert code == 0, beside
    secret = made.strip()
    assert re.fullmatch(r"jsk_[0-9a-f]{12}_[\w-]{43}", secret)
    assert secret not in beside
    for form in ((), ("--json",)):
        _, listed, _ = here("keys", "list", *form)
        assert secret[:16] in listed
        assert secret[17:] not in listed


@pytest.mark.parametrize(
    "arguments",
    [
        ("", "--days", "1"),
        ("x", "--tenant", ""),
        ("x", "--tenant", " "),
        ("x", "--days", "-1"),
        ("x", "--days", "nan"),
        ("x", "--rate", "0"),
        ("x", "--rate", "nan"),
        ("x", "--rate", "inf"),
        ("x", "--rate", "1e30"),
        ("x", "--burst", "2"),
        ("x", "--rate", "2", "--burst", "1.5"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused_in_a_line_and_no_database_made_for_it(
    here: Here, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    code, made, told = here("keys", "create", *arguments)
    assert (code, made, len(told.splitlines())) == (2, "", 1)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "command", [("keys", "list"), ("keys", "revoke", "jsk_0"), ("tenants", "list"), ("tenants", "limit", "a", "3")]
)
def test_where_there_is_no_database_none_is_made_to_look_into(
    here: Here, tmp_path: Path, command: tuple[str, ...]
) -> None:
    code, shown, told = here(*command)
    assert (code != 0, shown) == (True, "")
    assert f"There is no database at {tmp_path}/data/jobs.db." in told
    assert not (tmp_path / "data").exists()


def test_a_key_says_that_a_database_was_made_for_it(here: Here, tmp_path: Path) -> None:
    assert f"made {tmp_path}/data/jobs.db" in here("keys", "create", "first")[2].splitlines()
    assert "made /" not in here("keys", "create", "second")[2]


def test_a_limit_for_a_tenant_that_was_not_there_says_that_it_is_new(here: Here) -> None:
    here("keys", "create", "first", "--tenant", "acme")
    assert here("tenants", "limit", "acme", "5") == (0, "At most 5 jobs of acme wait.\n", "")
    code, told, beside = here("tenants", "limit", "acmee", "5")
    assert (code, told) == (0, "At most 5 jobs of acmee wait.\n")
    assert beside.startswith("acmee is a new tenant, without a key yet.")
    assert here("tenants", "limit", "acmee")[2] == ""


def test_a_snapshot_is_for_its_owner_alone(here: Here, tmp_path: Path) -> None:
    here("keys", "create", "ci")
    assert here("snapshot", "copy.db")[0] == 0
    assert (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600


def test_a_snapshot_takes_a_name_that_begins_with_a_hyphen(here: Here, tmp_path: Path) -> None:
    here("keys", "create", "ci")
    code, told, _ = here("snapshot", "--", "-x.db")
    assert (code, told.startswith("-x.db has ")) == (0, True)
    assert (tmp_path / "-x.db").exists()


def test_revoking_what_is_no_key_tells_where_they_are_listed(here: Here) -> None:
    _, secret, _ = here("keys", "create", "ci")
    for prefix in ("jsk_0", secret[:8]):  # a part of a true one
        code, _, told = here("keys", "revoke", prefix)
        assert code == 2
        assert "`jsk_` and all twelve digits" in told
        assert "jobservice keys list" in told
    assert here("keys", "revoke", secret[:16])[0] == 0


def test_a_key_made_beside_a_running_service_opens_it(own_service: RunningService) -> None:
    made = cli("keys", "create", "beside", "--tenant", "acme", "--json", cwd=own_service.folder)
    assert made.returncode == 0, made.stderr
    key = json.loads(made.stdout)
    listed = own_service.cli("jobs", "--json", JOBSERVICE_API_KEY=key["key"])
    assert (listed.returncode, listed.stdout) == (0, "[]\n")
    may_submit = cli("keys", "create", "blind", "--tenant", "acme", "--role", "submit", cwd=own_service.folder)
    submit = ("submit", "--plugin", "echo", "--payload", "{}", "--wait")
    made_blindly = own_service.cli(*submit, JOBSERVICE_API_KEY=may_submit.stdout.strip())
    assert (made_blindly.returncode, made_blindly.stdout) == (2, "")
    (job,) = json.loads(own_service.cli("jobs", "--json", JOBSERVICE_API_KEY=key["key"]).stdout)
    assert f"Job {job['id']} was made and goes on, but this key may not follow it" in made_blindly.stderr
    assert "that takes the role read" in made_blindly.stderr
    (own_service.folder / "inbox").mkdir()
    (own_service.folder / "inbox/one.json").write_text("{}")
    folder = ("submit", "inbox", "--plugin", "echo", "--wait")
    all_blindly = own_service.cli(*folder, JOBSERVICE_API_KEY=may_submit.stdout.strip())
    assert all_blindly.returncode == 2
    newest, _ = json.loads(own_service.cli("jobs", "--json", JOBSERVICE_API_KEY=key["key"]).stdout)
    assert newest["id"] in all_blindly.stdout
    assert "1 of 1 jobs were made and go on, but this key may not follow them" in all_blindly.stderr
    wrong = own_service.cli("jobs", JOBSERVICE_API_KEY="jsk_000000000000_wrong")
    assert wrong.returncode == 2
    assert "(401)" in wrong.stderr
    assert "JOBSERVICE_API_KEY" in wrong.stderr
    assert cli("keys", "revoke", key["prefix"], cwd=own_service.folder).returncode == 0


def test_other_machines_are_let_in_only_with_keys(here: Here, tmp_path: Path) -> None:
    everywhere = ("serve", "--host", "0.0.0.0", "--port", "0")
    refused = cli(*everywhere, cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "jobservice keys create NAME" in refused.stderr
    _, key, _ = here("keys", "create", "first")
    with serving(*everywhere, cwd=tmp_path) as url:
        assert requests.get(f"{url}/v1/jobs", timeout=30).status_code == 401
        headers = {"Authorization": f"Bearer {key.strip()}"}
        assert requests.get(f"{url}/v1/jobs", headers=headers, timeout=30).status_code == 200


@contextlib.contextmanager
def serving(*arguments: str, cwd: Path) -> Iterator[str]:
    """The address, on this machine, of a service that runs for as long as the block."""
    with (cwd / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [*COMMAND, *arguments], cwd=cwd, env=clean_environment(), stdout=subprocess.PIPE, stderr=log, text=True
        )
    assert process.stdout
    try:
        port = next((found[1] for line in process.stdout if (found := re.search(r"http://\S+:(\d+)", line))), None)
        assert port, (cwd / "serve.log").read_text()
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()
