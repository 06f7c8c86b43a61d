"""The page on webhooks, followed as a newcomer would: its receiver, and every command in order in one shell."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

from service.settings import Settings
from tests.cli.conftest import ROOT, clean_environment

PAGE = ROOT / "docs/webhooks.md"
MARK = "-- end of a command --"
START = """{command} --port {port} >serve.log 2>&1 &
trap 'kill $(jobs -p); wait' EXIT
curl -s --retry 600 --retry-delay 1 --retry-connrefused -o /dev/null http://127.0.0.1:{port}/livez"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def test_every_command_of_the_page_answers_as_printed(tmp_path: Path) -> None:
    port, receiver_port = free_port(), free_port()

    def local(text: str) -> str:
        return text.replace("127.0.0.1:8080", f"127.0.0.1:{port}").replace("9000", str(receiver_port))

    script, expected = [f"export JOBSERVICE_URL=http://127.0.0.1:{port}"], []
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.M | re.S):
        if language == "python":
            (tmp_path / "receiver.py").write_text(local(block))
        if language == "sh":
            script.append(START.format(command=block.strip(), port=port))
        for example in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:] if language == "console" else ():
            lines = example.splitlines()
            end = next(n for n, line in enumerate(lines) if not line.endswith(("\\", "{},"))) + 1
            command, output = "\n".join(lines[:end]), "\n".join(lines[end:])
            script += [local(command), f"echo; echo '{MARK}'"]
            expected.append((command, local(output)))
    environment = clean_environment()
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    run = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    outputs = run.stdout.replace("\r", "").split(MARK)[:-1]
    assert len(outputs) == len(expected) > 10, run.stderr
    for (command, printed), output in zip(expected, outputs, strict=True):
        pattern = ".*".join(map(re.escape, printed.strip().split("…")))
        assert re.fullmatch(pattern, output.strip(), re.DOTALL), f"{command}\n{output}\n{run.stderr}"


def test_the_table_of_waits_is_the_setting() -> None:
    unit_s = {"s": 1, "min": 60, "h": 3600}
    (row,) = re.findall(r"^\| after \| at once \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    waits = [int(number) * unit_s[unit] for number, unit in (cell.split() for cell in row.split(" | "))]
    assert waits == list(Settings(_env_file=None).webhook_waits_s)
    assert sum(waits) / 86_400 > 3
