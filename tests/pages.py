"""Follows a page of the documents as a newcomer would: every command, in order, in one shell, beside one service."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.cli.conftest import clean_environment

_MARK = "-- end of a command --"
_START = """{command} --port {port} >serve.log 2>&1 &
trap 'kill $(jobs -p); wait' EXIT
curl -s --retry 600 --retry-delay 1 --retry-connrefused -o /dev/null http://127.0.0.1:{port}/livez"""
#: What the lines of a command end with that goes on in the next one.
_GOES_ON = ("\\", "{},", "(")


def follow(page: str, folder: Path, port: int, local: Callable[[str], str] = str) -> int:
    """Run the page in `folder`, its service on `port`; how many commands there were, each answered as printed.

    A block `sh` is the command of the service, a block `python` the file `receiver.py`, a block `console` commands with
    what they print, in which `…` stands for anything. `local` says what else is not here as it is on the page.
    """

    def here(text: str) -> str:
        return local(text).replace("127.0.0.1:8080", f"127.0.0.1:{port}")

    script, expected = [f"export JOBSERVICE_URL=http://127.0.0.1:{port}"], []
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", page, re.M | re.S):
        if language == "python":
            (folder / "receiver.py").write_text(here(block))
        if language == "sh":
            script.append(_START.format(command=block.strip(), port=port))
        for example in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:] if language == "console" else ():
            lines = example.splitlines()
            end = next(n for n, line in enumerate(lines) if not line.endswith(_GOES_ON)) + 1
            command, output = "\n".join(lines[:end]), "\n".join(lines[end:])
            script += [here(command), f"echo; echo '{_MARK}'"]
            expected.append((command, here(output)))
    environment = clean_environment()
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    run = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    outputs = run.stdout.replace("\r", "").split(_MARK)[:-1]
    assert len(outputs) == len(expected), run.stderr
    for (command, printed), output in zip(expected, outputs, strict=True):
        pattern = ".*".join(map(re.escape, printed.strip().split("…")))
        assert re.fullmatch(pattern, output.strip(), re.DOTALL), f"{command}\n{output}\n{run.stderr}"
    return len(expected)
