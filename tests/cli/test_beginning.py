"""A command line that has not yet read its arguments."""

from __future__ import annotations

from pathlib import Path

from .conftest import cli

#: Presses Ctrl-C when the module that reads command lines is looked for.
PRESSED = """
import signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "cyclopts":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Finder())
"""


def test_ctrl_c_while_a_command_is_loaded_is_told_by_the_exit_code_alone(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(PRESSED)
    done = cli("jobs", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
