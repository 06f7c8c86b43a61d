"""The wheel is whole: installed alone, outside the repository, it serves and runs a job."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 60

# One group: the environment is built once, not once for each process of the test run.
pytestmark = [pytest.mark.timeout(400), pytest.mark.xdist_group("packaging")]


def _run(*command: str | Path, cwd: Path, **environment: str) -> str:
    outcome = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=_clean_environment() | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, f"{command}\n{outcome.stdout}\n{outcome.stderr}"
    return outcome.stdout


def _clean_environment() -> dict[str, str]:
    """This process's environment without what would lead back to the repository or configure the service."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("JOBSERVICE_") and name not in ("PYTHONPATH", "VIRTUAL_ENV")
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel and what it declares, at the versions of the lock, and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    _run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    constraints = folder / "constraints.txt"
    constraints.write_text(re.sub(r" \\\n\s+--hash=\S+", "", (ROOT / "requirements.lock").read_text()))
    python = folder / "venv/bin/python"
    _run(python, "-m", "pip", "install", "--quiet", "--constraint", constraints, wheel, cwd=folder)
    return folder / "venv"


@pytest.fixture
def served(environment: Path, tmp_path: Path) -> Iterator[str]:
    """The URL of a `jobservice serve` that runs from the installed wheel in an empty folder."""
    log = tmp_path / "serve.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [environment / "bin/jobservice", "serve", "--port", "0"],
            cwd=tmp_path,
            env=_clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
        ) as process,
    ):
        try:
            yield _announced_url(process, log)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0, log.read_text()
        finally:
            process.kill()


def _announced_url(process: subprocess.Popen[str], log: Path) -> str:
    assert process.stdout
    for line in process.stdout:
        if found := re.search(r"http://\S+:\d+", line):
            return found[0].rstrip("/.,")
    raise AssertionError(f"jobservice serve ended without saying where it listens:\n{log.read_text()}")


def _call(url: str, body: Any = None) -> tuple[int, Any]:
    request = urllib.request.Request(url, method="GET" if body is None else "POST")
    if body is not None:
        request.add_header("Content-Type", "application/json")
        request.data = json.dumps(body).encode()
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.status, json.load(response)


def test_the_wheel_carries_migrations_and_nothing_of_the_repository(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    outside = {name for name in names if not name.startswith("service/") and ".dist-info/" not in name}
    assert outside == set()
    revisions = {f"service/{path.relative_to(ROOT)}" for path in (ROOT / "migrations/versions").glob("*.py")}
    assert revisions
    assets = {str(path.relative_to(ROOT)) for path in (ROOT / "service/api/assets").rglob("*") if path.is_file()}
    assert "service/api/assets/swagger-ui/LICENSE" in assets
    wanted = revisions | assets | {"service/alembic.ini", "service/migrations/env.py", "service/py.typed"}
    assert wanted <= set(names)
    assert not any("__pycache__" in name or "/tests/" in name for name in names)


def test_the_installed_wheel_is_not_the_repository(environment: Path, tmp_path: Path) -> None:
    where = _run(environment / "bin/python", "-c", "import service; print(service.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(environment)


def test_the_installed_service_runs_one_job(served: str, tmp_path: Path) -> None:
    status, accepted = _call(f"{served}/v1/jobs", {"plugin": "echo", "payload": {"text": "hello"}})
    assert status == 202
    _, record = _call(f"{served}/v1/jobs/{accepted['id']}?wait=30")
    assert record["status"] == "SUCCESS", record
    assert record["result"] == {"text": "hello"}
    assert list(tmp_path.rglob("jobs.db")), "the data is not below the working directory"


def test_the_installed_service_serves_its_documentation(served: str) -> None:
    with urllib.request.urlopen(f"{served}/docs", timeout=60) as page:
        loaded = re.findall(r'(?:src|href)="(/docs/[^"]+)"', page.read().decode())
    assert "/docs/docs.js" in loaded
    with urllib.request.urlopen(f"{served}/docs/docs.js", timeout=60) as script:
        loaded += [f"/docs/{name}" for name in re.findall(r'from "\./([^"]+)"', script.read().decode())]
    assert len(loaded) > 4
    for path in loaded:
        with urllib.request.urlopen(served + path, timeout=60) as file:
            assert int(file.headers["Content-Length"]) > 100


def test_plain_alembic_finds_the_revisions_of_the_installed_wheel(environment: Path, tmp_path: Path) -> None:
    package = next((environment / "lib").glob("python*/site-packages/service"))
    alembic = (environment / "bin/alembic", "-c", package / "alembic.ini")
    (tmp_path / "data").mkdir()
    _run(*alembic, "upgrade", "head", cwd=tmp_path, JOBSERVICE_DATA_DIR=str(tmp_path / "data"))
    assert "(head)" in _run(*alembic, "heads", cwd=tmp_path)
    assert (tmp_path / "data/jobs.db").exists()
