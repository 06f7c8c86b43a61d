"""The page on retention, followed as a newcomer would."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import ROOT
from tests.pages import follow
from tests.torture.deployment import free_port

PAGE = ROOT / "docs/retention.md"


def test_every_command_of_the_page_answers_as_printed(tmp_path: Path) -> None:
    assert follow(PAGE.read_text(), tmp_path, free_port()) > 10
