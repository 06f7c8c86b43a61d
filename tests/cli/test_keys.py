"""`keys`, `tenants` and `serve` where it matters who may call."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import requests

from .conftest import COMMAND, RunningService, clean_environment, cli


def test_a_key_is_printed_once_and_never_again(tmp_path: Path) -> None:
    made = cli("keys", "create", "ci", "--role", "read", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    secret = made.stdout.strip()
    assert re.fullmatch(r"jsk_[0-9a-f]{12}_[\w-]{43}", secret)
    assert secret not in made.stderr
    for listed in (cli("keys", "list", cwd=tmp_path), cli("keys", "list", "--json", cwd=tmp_path)):
        assert secret[:16] in listed.stdout
        assert secret[17:] not in listed.stdout


def test_a_key_that_makes_no_sense_is_refused_in_a_line(tmp_path: Path) -> None:
    for arguments in (("", "--days", "1"), ("x", "--days", "-1"), ("x", "--rate", "0"), ("x", "--burst", "2")):
        done = cli("keys", "create", *arguments, cwd=tmp_path)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), arguments
    unknown = cli("keys", "revoke", "jsk_0", cwd=tmp_path)
    assert unknown.returncode == 1
    assert "jobservice keys list" in unknown.stderr


def test_a_key_made_beside_a_running_service_opens_it(own_service: RunningService) -> None:
    made = cli("keys", "create", "beside", "--tenant", "acme", "--json", cwd=own_service.folder)
    assert made.returncode == 0, made.stderr
    key = json.loads(made.stdout)
    listed = own_service.cli("jobs", "--json", JOBSERVICE_API_KEY=key["key"])
    assert (listed.returncode, listed.stdout) == (0, "[]\n")
    wrong = own_service.cli("jobs", JOBSERVICE_API_KEY="jsk_000000000000_wrong")
    assert wrong.returncode == 2
    assert "(401)" in wrong.stderr
    assert "JOBSERVICE_API_KEY" in wrong.stderr
    assert cli("keys", "revoke", key["prefix"], cwd=own_service.folder).returncode == 0


def test_other_machines_are_let_in_only_with_keys_or_in_so_many_words(tmp_path: Path) -> None:
    everywhere = ("serve", "--host", "0.0.0.0", "--port", "0")
    refused = cli(*everywhere, cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "jobservice keys create NAME" in refused.stderr
    with serving(*everywhere, "--allow-anyone-who-reaches-this-port", cwd=tmp_path) as url:
        assert requests.get(f"{url}/v1/jobs", timeout=30).status_code == 200
    key = cli("keys", "create", "first", cwd=tmp_path).stdout.strip()
    with serving(*everywhere, cwd=tmp_path) as url:
        assert requests.get(f"{url}/v1/jobs", timeout=30).status_code == 401
        headers = {"Authorization": f"Bearer {key}"}
        assert requests.get(f"{url}/v1/jobs", headers=headers, timeout=30).status_code == 200
    assert cli("keys", "revoke", key, cwd=tmp_path).returncode == 0
    assert cli(*everywhere, cwd=tmp_path).returncode == 1, "a revoked key is none"


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
