"""The pages for newcomers, followed as a newcomer would: every command, in order, in one shell."""

from __future__ import annotations

import re
import socket
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, clean_environment

MARK = "-- end of a command --"
START = """jobservice serve --port {port} >serve.log 2>&1 &
trap "kill $!; wait" EXIT
curl -s --retry 600 --retry-delay 1 --retry-connrefused -o /dev/null http://127.0.0.1:{port}/livez"""


@pytest.mark.parametrize("page", ["auth.md", "limits.md", "events.md", "schedules.md", "submitting.md"])
def test_every_command_of_the_page_answers_as_printed(page: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script, expected = [f"export JOBSERVICE_URL=http://127.0.0.1:{port}"], []
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.M | re.S):
        if language == "sh":
            assert block == "jobservice serve\n"
            script.append(START.format(port=port))
        for example in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:] if language == "console" else ():
            lines = example.splitlines()
            end = next(n for n, line in enumerate(lines) if not line.endswith("\\")) + 1
            command, output = "\n".join(lines[:end]), "\n".join(lines[end:])
            script += [command.replace("127.0.0.1:8080", f"127.0.0.1:{port}"), f"echo; echo '{MARK}'"]
            expected.append((command, output))
    run = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    outputs = run.stdout.replace("\r", "").split(MARK)[:-1]
    assert len(outputs) == len(expected) > 5, run.stderr
    for (command, printed), output in zip(expected, outputs, strict=True):
        pattern = ".*".join(map(re.escape, printed.strip().split("…")))
        assert re.fullmatch(pattern, output.strip(), re.DOTALL), f"{command}\n{output}\n{run.stderr}"
