"""The page on retention, followed as a newcomer would: every command in order in one shell."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.cli.conftest import ROOT, clean_environment
from tests.webhooks.test_docs_webhooks import MARK, START, free_port

PAGE = ROOT / "docs/retention.md"


def test_every_command_of_the_page_answers_as_printed(tmp_path: Path) -> None:
    port = free_port()
    script: list[str] = []
    expected: list[tuple[str, str]] = []
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.M | re.S):
        if language == "sh":
            script.append(START.format(command=block.strip(), port=port))
        for example in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:] if language == "console" else ():
            command, output = re.fullmatch(r"(.*?)\n((?:[\[(\w][^\n]*\n)?)", example, re.DOTALL).groups()
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
    outputs = run.stdout.split(MARK)[:-1]
    assert len(outputs) == len(expected) > 10, run.stderr
    for (command, printed), output in zip(expected, outputs, strict=True):
        assert output.strip() == printed.strip(), f"{command}\n{run.stderr}"
