"""The page on webhooks, followed as a newcomer would, with its receiver."""

from __future__ import annotations

import re
from pathlib import Path

from service.settings import Settings
from tests.cli.conftest import ROOT
from tests.pages import follow
from tests.torture.deployment import free_port

PAGE = ROOT / "docs/webhooks.md"


def test_every_command_of_the_page_answers_as_printed(tmp_path: Path) -> None:
    port, receiver_port = free_port(), str(free_port())
    assert follow(PAGE.read_text(), tmp_path, port, lambda text: text.replace("9000", receiver_port)) > 10


def test_the_table_of_waits_is_the_setting() -> None:
    unit_s = {"s": 1, "min": 60, "h": 3600}
    (row,) = re.findall(r"^\| after \| at once \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    waits = [int(number) * unit_s[unit] for number, unit in (cell.split() for cell in row.split(" | "))]
    assert waits == list(Settings(_env_file=None).webhook_waits_s)
    assert sum(waits) / 86_400 > 3
