"""`make demo` shows what it claims, and fails when a picture does not say what it should."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT, clean_environment

pytestmark = pytest.mark.xdist_group("cli")


def demo(script: Path, data_dir: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, script, data_dir],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_the_demo_prints_text_codes_thumbnail_and_rows(tmp_path: Path) -> None:
    done = demo(ROOT / "examples/demo.py", tmp_path / "data")
    assert done.returncode == 0, done.stdout + done.stderr
    expected = json.loads((ROOT / "examples/pictures/expected.json").read_text())
    for words in (*expected["page.png"]["words"], *(code["text"] for code in expected["label.png"]["codes"])):
        assert words in done.stdout
    (thumbnail,) = (tmp_path / "data").glob("thumbnail.*")
    assert str(thumbnail) in done.stdout
    assert done.stdout.count("SUCCESS") >= 3
    assert "FROM report_jobs" in done.stdout


def test_the_demo_fails_when_an_expected_text_or_code_is_not_read(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    expected_file = tmp_path / "examples/pictures/expected.json"
    expected = json.loads(expected_file.read_text())
    expected["page.png"]["words"].append("Zanzibar")
    expected["label.png"]["codes"].append({"format": "QRCode", "text": "nothing"})
    expected_file.write_text(json.dumps(expected))
    done = demo(tmp_path / "examples/demo.py", tmp_path / "data")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "'Zanzibar' in page.png" in done.stdout
    assert "QRCode code 'nothing' in label.png" in done.stdout
