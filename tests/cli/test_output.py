"""Tables at a terminal."""

from __future__ import annotations

import sys

import pytest

from service.cli.output import print_table, table_of

ID = "01a218c2-d299-725c-8c98-8397af0f7de1"
WHAT = "ExecutionError: the page has no text that anybody could read, whatever is tried"


@pytest.mark.parametrize(("columns", "lines"), [("80", 3), ("400", 2)])
def test_no_id_is_cut_and_nothing_is_left_out(
    columns: str, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    table = table_of("id", "plugin", "status", "created (UTC)", "run s", "what")
    table.add_row(ID, "thumbnail", "FAILED", "2026-11-26 16:49:12", "0.03", WHAT)
    print_table(table)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == lines
    assert shown[1].startswith(f"{ID}  thumbnail  FAILED  2026-11-26 16:49:12  0.03   ExecutionError: the page")
    text = " ".join(line.strip() for line in shown)
    assert WHAT.rpartition(" ")[2] in text
