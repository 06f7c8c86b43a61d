"""`config`, `migrate` and `serve` before there is a service: settings, their sources, and starts that fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.command import downgrade

from benchmarks.filling import fill
from service import __version__
from service.db.migrate import alembic_config, upgrade
from service.settings import ClientSettings, Settings

from .conftest import RunningService, clean_environment, cli


def test_config_names_every_setting_its_variable_and_its_source(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("JOBSERVICE_WARM=3\nJOBSERVICE_PORT=1\nJOBSERVICE_HOST=::1\n")
    done = cli("config", "--json", "--port", "3", cwd=tmp_path, JOBSERVICE_PORT="2", JOBSERVICE_WARM="2")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert set(shown) == {*Settings.model_fields, *ClientSettings.model_fields}
    assert shown["port"] == {"value": 3, "source": "option", "variable": "JOBSERVICE_PORT"}
    assert shown["warm"] == {"value": 2, "source": "environment", "variable": "JOBSERVICE_WARM"}
    assert shown["host"] == {"value": "::1", "source": ".env", "variable": "JOBSERVICE_HOST"}
    assert shown["drain_s"]["source"] == "default"
    assert shown["database_url"]["value"] == f"sqlite+aiosqlite:///{tmp_path}/data/jobs.db"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+asyncpg://user:s3cret@host:5432/jobs", "postgresql+asyncpg://user:***@host:5432/jobs"),
        ("postgresql+asyncpg://user:s3%40cr@host/jobs", "postgresql+asyncpg://user:***@host/jobs"),
        ("postgresql+asyncpg://user:s3@c/s3@host/jobs", "postgresql+asyncpg://user:***@host/jobs"),
        ("postgresql+asyncpg://user:s3/cr@host/jobs", "postgresql+asyncpg://user:***@host/jobs"),
        ("postgresql+asyncpg://:s3cret@host/jobs", "postgresql+asyncpg://:***@host/jobs"),
        (
            "postgresql+asyncpg://h/jobs?user=u&password=s3cret&x=1",
            "postgresql+asyncpg://h/jobs?user=u&password=***&x=1",
        ),
    ],
)
def test_config_never_shows_a_secret(tmp_path: Path, url: str, shown: str) -> None:
    for form in ((), ("--json",)):
        done = cli("config", *form, cwd=tmp_path, JOBSERVICE_DATABASE_URL=url, JOBSERVICE_API_KEY="s3key")
        assert done.returncode == 0
        assert shown in done.stdout
        assert "s3" not in done.stdout


@pytest.mark.parametrize("command", ["config", "serve", "migrate"])
def test_a_wrong_setting_is_named_as_option_and_as_variable(tmp_path: Path, command: str) -> None:
    for arguments, variables in ((("--port", "many"), {}), ((), {"JOBSERVICE_PORT": "many"})):
        done = cli(command, *arguments, cwd=tmp_path, **variables)
        assert (done.returncode, done.stdout) == (2, "")
        assert "--port (JOBSERVICE_PORT): " in done.stderr
        assert "'many'" in done.stderr
        assert len(done.stderr.splitlines()) <= 2
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("WEBHOOK_RETRIES_S", "-1", "--webhook-retries-s (JOBSERVICE_WEBHOOK_RETRIES_S): waits are seconds"),
        (
            "WEBHOOK_RETRIES_S",
            "nonsense",
            "--webhook-retries-s (JOBSERVICE_WEBHOOK_RETRIES_S): waits are seconds between commas, such as 5,300,1800",
        ),
        ("KEEP_BY_PLUGIN", "soon", "--keep-by-plugin (JOBSERVICE_KEEP_BY_PLUGIN): is not JSON"),
        ("DATA_DIR", "", "--data-dir (JOBSERVICE_DATA_DIR): is empty: name one"),
        ("DATABASE_URL", "", "--database-url (JOBSERVICE_DATABASE_URL): is empty: name one"),
        ("URL", " ", "--url (JOBSERVICE_URL): is empty: name one"),
        ("TIMEOUT_S", "inf", "--timeout-s (JOBSERVICE_TIMEOUT_S): Input should be a finite number"),
        ("MEMORY_MB", "1e15", "--memory-mb (JOBSERVICE_MEMORY_MB): Input should be less than or equal to 1000000000"),
        ("MAX_RESULT_MB", "1e15", "--max-result-mb (JOBSERVICE_MAX_RESULT_MB): Input should be less than or equal"),
        ("LOG_LEVEL", "loud", "--log-level (JOBSERVICE_LOG_LEVEL): Input should be 'debug', 'info'"),
    ],
)
def test_what_is_wrong_in_a_setting_is_told_without_words_of_the_library(
    tmp_path: Path, variable: str, value: str, told: str
) -> None:
    done = cli("config", cwd=tmp_path, **{f"JOBSERVICE_{variable}": value})
    assert done.returncode == 2
    first, _ = done.stderr.splitlines()
    assert first.startswith(f"jobservice: {told}")
    assert first.endswith(f"; given: {value!r}")


@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("jobs",)])
@pytest.mark.parametrize("line", ["JOBSERVICE PORT=1", "JOBSERVICE_PORT='1"])
def test_a_line_of_the_env_file_that_cannot_be_read_is_told(
    tmp_path: Path, command: tuple[str, ...], line: str
) -> None:
    (tmp_path / ".env").write_text(f"# first\n\n{line}\nJOBSERVICE_WARM=2\n")
    done = cli(*command, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"jobservice: {tmp_path}/.env, line 3: this is not NAME=VALUE. Correct the line, or begin it with #.\n"
    )


def test_what_the_env_file_says_to_other_programs_is_no_matter(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("JOBSERVICE_WARM=3\nsource common.sh\nOTHER='1\n")
    done = cli("config", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["warm"]["value"] == 3


@pytest.mark.parametrize("command", [("config",), ("serve", "--host", "0.0.0.0"), ("work", "-p", "nope")])
def test_a_variable_that_is_no_setting_is_told_once(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / ".env").write_text("JOBSERVICE_WRAM=3\nJOBSERVICE_WARM=2\nOTHER=1\n")
    others = {"JOBSERVICE_FAILPOINTS": "", "JOBSERVICE_TEST_X": "1", "JOBSERVICE_URL": "http://127.0.0.1:1"}
    done = cli(*command, cwd=tmp_path, JOBSERVICE_PROT="1", JOBSERVICE_QQQ="1", **others)
    assert [line for line in done.stderr.splitlines() if "no setting" in line] == [
        "JOBSERVICE_PROT is no setting and has no effect. Is JOBSERVICE_PORT meant?",
        "JOBSERVICE_QQQ is no setting and has no effect.",
        "JOBSERVICE_WRAM is no setting and has no effect. Is JOBSERVICE_WARM meant?",
    ]


def test_settings_that_are_no_text_are_told_with_their_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes("JOBSERVICE_URL=http://b\xfccher".encode("latin-1"))
    for command in (("jobs",), ("config",), ("migrate",)):
        done = cli(*command, cwd=tmp_path)
        told = f"jobservice: {tmp_path}/.env is not UTF-8 text (byte 23): save it as UTF-8.\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", told)


def test_migrate_makes_the_database_and_repeats_harmlessly(tmp_path: Path) -> None:
    for _ in range(2):
        done = cli("migrate", "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(r"\w{4,}", json.loads(done.stdout)["revision"])
    database = sqlite3.connect(tmp_path / "data/jobs.db")
    try:
        assert database.execute("SELECT count(*) FROM report_jobs").fetchone() == (0,)
    finally:
        database.close()


@pytest.mark.parametrize("command", [("migrate",), ("keys", "list")])
def test_what_is_told_of_a_migration_is_not_in_the_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/data/jobs.db"
    asyncio.run(upgrade(url))
    asyncio.run(fill(url, 1))
    monkeypatch.setenv("JOBSERVICE_DATABASE_URL", url)
    downgrade(alembic_config(), "-1")
    done = cli(*command, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    assert "database copied before its migration" in done.stderr


def test_a_database_is_made_for_its_owner_alone_and_an_older_one_is_left_as_it_is(tmp_path: Path) -> None:
    database = tmp_path / "data/jobs.db"
    for mode in (0o600, 0o640):
        assert cli("migrate", cwd=tmp_path).returncode == 0
        assert database.stat().st_mode & 0o777 == mode
        database.chmod(0o640)


def test_a_second_service_on_the_same_data_is_refused(service: RunningService) -> None:
    done = service.cli("serve", "--port", "0")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert str(service.data_dir) in done.stderr


def test_a_taken_port_is_told_with_what_to_do(service: RunningService, tmp_path: Path) -> None:
    done = cli("serve", "--port", service.url.rpartition(":")[2], cwd=tmp_path)
    assert done.returncode == 1
    assert "JOBSERVICE_PORT" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("no-such-host.invalid", r".+"),  # as the name server says it
        ("192.0.2.1", "Cannot assign requested address"),  # of no machine at all
        ("a..b", "Cannot assign requested address"),
    ],
)
def test_an_address_that_is_not_of_this_machine_is_told_by_its_setting(tmp_path: Path, host: str, why: str) -> None:
    open_to_all = {"JOBSERVICE_ALLOW_ANYONE_WHO_REACHES_THIS_PORT": "true"}
    done = cli("serve", "--port", "0", cwd=tmp_path, JOBSERVICE_HOST=host, **open_to_all)
    assert done.returncode == 1
    assert re.search(rf"Cannot listen on {host}:0: {why}\. Give JOBSERVICE_HOST an address", done.stderr)
    assert "Unknown error" not in done.stderr
    assert "JOBSERVICE_PORT" not in done.stderr


def test_a_database_that_is_none_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/jobs.db").write_bytes(b"no database" * 100)
    done = cli("migrate", cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    for piece in (f"{tmp_path}/data/jobs.db", "file is not a database", "restore a backup"):
        assert piece in done.stderr


@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("migrate",), ("keys", "list"), ("snapshot", "x.db")])
def test_a_database_of_another_user_is_told_as_one(tmp_path: Path, command: tuple[str, ...]) -> None:
    assert cli("migrate", cwd=tmp_path).returncode == 0
    (tmp_path / "data/jobs.db").chmod(0)
    # Root may read every file, unless it gives that up.
    powerless = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.getuid() == 0 else ()
    done = cli(*command, cwd=tmp_path, prefix=powerless)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert f"{tmp_path}/data/jobs.db may not be read and written by this user" in done.stderr
    assert "ulimit" not in done.stderr


@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("migrate",), ("keys", "create", "x")])
def test_a_folder_where_the_database_should_be_is_told_as_one(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "data/jobs.db").mkdir(parents=True)
    done = cli(*command, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert f"{tmp_path}/data/jobs.db is a folder" in done.stderr


@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("migrate",), ("keys", "create", "x")])
@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_a_database_of_another_program_is_refused_and_left_alone(
    tmp_path: Path, command: tuple[str, ...], journal: str
) -> None:
    path = tmp_path / "data/jobs.db"
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as foreign:
        foreign.execute(f"PRAGMA journal_mode={journal}")
        foreign.execute("CREATE TABLE zoo (id INTEGER PRIMARY KEY AUTOINCREMENT)")
    before = path.read_bytes()
    done = cli(*command, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert f"{path} is no database of jobservice: it has the table 'zoo' of another program" in done.stderr
    assert "JOBSERVICE_DATABASE_URL" in done.stderr
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["jobs.db", "jobs.db.lock"]


def test_a_database_in_a_folder_that_takes_no_files_is_told_with_what_to_do(tmp_path: Path) -> None:
    done = cli("migrate", cwd=tmp_path, JOBSERVICE_DATABASE_URL="sqlite+aiosqlite:////proc/self/jobs.db")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "JOBSERVICE_DATA_DIR" in done.stderr


def test_a_database_server_that_does_not_answer_is_named_without_its_user(tmp_path: Path) -> None:
    pytest.importorskip("asyncpg")
    url = "postgresql+asyncpg://some_user:s3cret@127.0.0.1:9/jobs"
    done = cli("migrate", cwd=tmp_path, JOBSERVICE_DATABASE_URL=url)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "The database jobs at 127.0.0.1:9 cannot be opened" in done.stderr
    assert "Start PostgreSQL there" in done.stderr
    assert not re.search("some_user|s3cret", done.stderr)


def test_a_data_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for command in ("serve", "migrate"):
        done = cli(command, "--data-dir", "file/data", cwd=tmp_path)
        assert done.returncode == 1
        assert "file/data" in done.stderr
        assert "Traceback" not in done.stderr


def test_version_and_help_need_nothing(tmp_path: Path) -> None:
    assert cli("--version", cwd=tmp_path).stdout.strip() == __version__
    for command in ((), ("submit",), ("serve",), ("config",)):
        done = cli(*command, "--help", cwd=tmp_path)
        assert done.returncode == 0
        assert "Usage: jobservice" in done.stdout


def test_client_commands_do_not_import_the_service_side() -> None:
    script = "import service.cli.app, sys; print(*(name for name in sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", script], env=clean_environment(), capture_output=True, text=True, check=True
    ).stdout.split()
    unwanted = {"sqlalchemy", "alembic", "service.app", "service.api", "service.db", "service.job_management"}
    assert unwanted.isdisjoint(loaded)
    assert "service.client" in loaded
