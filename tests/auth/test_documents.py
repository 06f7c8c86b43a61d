"""The pages for newcomers, followed as a newcomer would."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT
from tests.pages import follow
from tests.torture.deployment import free_port


@pytest.mark.parametrize("name", ["auth.md", "limits.md", "events.md", "schedules.md", "submitting.md"])
def test_every_command_of_the_page_answers_as_printed(name: str, tmp_path: Path) -> None:
    page = (ROOT / "docs" / name).read_text()
    assert set(re.findall(r"^```sh\n(.*?)^```$", page, re.M | re.S)) == {"jobservice serve\n"}
    assert follow(page, tmp_path, free_port()) > 5
