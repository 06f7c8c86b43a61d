"""A real service as a process, and the command `jobservice` beside it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "service"]
STOP_TIMEOUT_S = 60
WAIT_S = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunningService:
    url: str
    data_dir: Path
    folder: Path  # with copies of the example pictures
    process: subprocess.Popen[str]

    @property
    def environment(self) -> dict[str, str]:
        return clean_environment() | {"JOBSERVICE_URL": self.url}

    def cli(
        self, *arguments: str | Path, stdin: bytes | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """One command, run to its end in `folder`."""
        return cli(*arguments, cwd=self.folder, stdin=stdin, **(self.environment | environment))


def clean_environment() -> dict[str, str]:
    """This process's environment without settings, and with the scripts of this interpreter on the path."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JOBSERVICE_")}
    return environment | {"PATH": f"{Path(sys.executable).parent}:{environment['PATH']}", "COLUMNS": "100"}


def cli(
    *arguments: str | Path, cwd: Path, stdin: bytes | None = None, prefix: Sequence[str] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*prefix, *COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=clean_environment() | environment,
        input=stdin or b"",
        capture_output=True,
        timeout=100,
        check=False,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def fenced(document: Path, language: str) -> list[str]:
    """The fenced blocks of `language` in a document, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)


def install_readme_plugin(site: Path) -> None:
    """What installing the README's package leaves behind: its module and its entry point."""
    module, *_ = (block for block in fenced(ROOT / "README.md", "python") if block.startswith("# shout.py"))
    (toml,) = fenced(ROOT / "README.md", "toml")
    entry = re.search(r'^\[project\.entry-points\."(.+)"\]\n(\w+) = "(.+)"$', toml, re.MULTILINE)
    assert entry
    metadata = site / "shout-1.0.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (site / "shout.py").write_text(module)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: shout\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{entry[1]}]\n{entry[2]} = {entry[3]}\n")


def wait_until(condition: Callable[[], bool]) -> None:
    """Look again and again, for what another process does is told by nothing."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)


@contextlib.contextmanager
def running_service(folder: Path, port: int = 0, **environment: str) -> Iterator[RunningService]:
    """A service (on a free port) with its data in `folder/data`; has to end with exit code 0 on SIGTERM."""
    for picture in (ROOT / "examples/pictures").iterdir():
        shutil.copy(picture, folder)
    install_readme_plugin(folder / "site")
    log = folder / "service.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*COMMAND, "serve", "--port", str(port)],
            cwd=folder,
            env=clean_environment() | {"PYTHONPATH": str(folder / "site")} | environment,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert process.stdout
    try:
        lines = iter(process.stdout)
        url = next((found[0] for line in lines if (found := re.search(r"http://\S+", line))), None)
        assert url, f"the service did not start:\n{log.read_text()}"
        yield RunningService(url=url, data_dir=folder / "data", folder=folder, process=process)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(STOP_TIMEOUT_S) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service that tests of this folder share; each makes jobs of its own."""
    with running_service(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture
def own_service(tmp_path: Path) -> Iterator[RunningService]:
    """A service of one test, that it may kill."""
    with running_service(tmp_path) as running:
        yield running
