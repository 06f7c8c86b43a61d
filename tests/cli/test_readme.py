"""README.md, docs/cli.md and docs/client.md are true: every block in them is run against a live service."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from service.settings import ClientSettings, Settings

from .conftest import ROOT, RunningService, fenced

README = ROOT / "README.md"
PLACE = "http://127.0.0.1:8080"  # where the documents say the service is

pytestmark = pytest.mark.xdist_group("cli")


def console_blocks() -> list[object]:
    documents = [README, ROOT / "docs/cli.md"]
    return [
        pytest.param(block, id=f"{document.name}-{number}")
        for document in documents
        for number, block in enumerate(fenced(document, "console"))
    ]


def commands(block: str) -> list[tuple[str, str]]:
    """The `$ ` lines of a block, each with the lines that are expected of it."""
    pieces = re.split(r"^\$ ", block, flags=re.MULTILINE)
    assert pieces[0] == "", "a block begins with a command"
    return [(command, expected) for command, _, expected in (piece.partition("\n") for piece in pieces[1:])]


def matches(expected: str, printed: str) -> bool:
    """Whether `printed` is what a document says, where `...` stands for anything and column widths do not count."""
    pattern = ".*?".join(re.escape(piece) for piece in narrow(expected).split("..."))
    return re.fullmatch(pattern, narrow(printed), re.DOTALL) is not None


def narrow(text: str) -> str:
    """`text` with one blank where columns are apart."""
    return re.sub(r" +", " ", text).rstrip("\n")


@pytest.mark.parametrize("block", console_blocks())
def test_a_console_block_does_what_it_says(service: RunningService, block: str) -> None:
    expected = commands(block)
    separator = "-- next --"
    script = f"\necho '{separator}'\n".join(command.replace(PLACE, service.url) for command, _ in expected)
    done = subprocess.run(
        ["bash", "-c", f"exec 2>&1\n{script}"],
        cwd=service.folder,
        env=service.environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    printed = done.stdout.split(f"{separator}\n")
    assert len(printed) == len(expected), done.stdout
    for (command, wanted), output in zip(expected, printed, strict=True):
        assert matches(wanted, output), f"$ {command}\n{output}\n-- instead of --\n{wanted}"


def test_the_python_client_example_reads_the_page(service: RunningService) -> None:
    (example,) = (block for block in fenced(README, "python") if "service.client" in block)
    done = subprocess.run(
        [sys.executable, "-c", example.replace(PLACE, service.url)],
        cwd=service.folder,
        env=service.environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("SUCCESS Harbour Instruments Ltd\n")


def test_the_example_of_the_client_prints_what_is_said(service: RunningService) -> None:
    page = ROOT / "docs/client.md"
    (example,), (expected,) = fenced(page, "python"), fenced(page, "text")
    done = subprocess.run(
        [sys.executable, "-c", example.replace(PLACE, service.url)],
        cwd=service.folder,
        env=service.environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert matches(expected, done.stdout), done.stdout


def test_the_query_answers_on_the_database_of_a_running_service(service: RunningService) -> None:
    assert service.cli("submit", "--plugin", "echo", "--payload", "{}", "--wait").returncode == 0
    (query,) = fenced(README, "sql")
    database = sqlite3.connect(f"{(service.data_dir / 'jobs.db').as_uri()}?mode=ro", uri=True)
    try:
        rows = {(plugin, status): jobs for plugin, status, jobs, *_ in database.execute(query)}
    finally:
        database.close()
    assert rows["echo", "SUCCESS"] >= 1


def test_the_named_python_versions_and_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = README.read_text()
    assert project["requires-python"] == ">=3.11,<3.15"
    assert "Python 3.11 to 3.14" in text
    named = set(re.findall(r"jobservice\[(\w+)\]", text)) | {"ocr", "barcode", "image"}
    assert named <= set(project["optional-dependencies"])


def test_the_shell_blocks_name_only_make_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"^make (\w+)", "\n".join(fenced(README, "sh")), re.MULTILINE)
    assert {"demo", "test"} <= set(named) <= targets


def test_users_are_sent_to_an_environment_that_make_does_not_empty() -> None:
    assert "-m venv --clear $(VENV)" in (ROOT / "Makefile").read_text()
    made = re.search(r"python3 -m venv (\S+) && \. (\S+)/bin/activate", README.read_text())
    assert made
    assert made[1] == made[2]
    assert Path(made[1]).name != ".venv"


def test_the_table_of_settings_is_the_settings() -> None:
    rows = re.findall(r"^\| `(JOBSERVICE_\w+)` \| `(--[\w-]+)` \| (.*?) \| (.*) \|$", README.read_text(), re.MULTILINE)
    expected = [
        (f"JOBSERVICE_{name.upper()}", f"--{name.replace('_', '-')}", _default(field.default), field.description)
        for kind in (Settings, ClientSettings)
        for name, field in kind.model_fields.items()
    ]
    documented = [(variable, option, default.strip("` "), text) for variable, option, default, text in rows]
    assert documented == expected


def _default(value: object) -> str:
    match value:
        case None:
            return ""
        case bool() | str() | int() | Path():
            return str(value)
        case float():
            return f"{value:g}"
        case _:  # computed on the machine it runs on
            return "CPU count"
