"""The table of problem types as pages: HTML for the service, Markdown for `docs/problems.md`."""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Iterator
from http import HTTPStatus
from typing import Final

import orjson

from service.api.problem_types import PATH, PROBLEM_TYPES, ProblemType, url

#: What the pages may load: nothing but the style sheet beside them.
POLICY: Final = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_STYLE: Final = "/docs/page.css"
_INTRODUCTION: Final = (
    "Every error of the API is a problem (RFC 9457) of the media type `application/problem+json`. Its `type` is one of "
    "these, and leads to a page of the service about it; programs decide by it, and people read `detail`."
)


def index() -> str:
    """The page that leads to all others."""
    rows = "".join(
        f'<tr><td>{_statuses(problem)}<td><a href="{url(problem.kind)}">{_text(problem.title)}</a>'
        for problem in PROBLEM_TYPES.values()
    )
    return _page("Problems", f"<p>{_text(_INTRODUCTION)}<table><tr><th>Status<th>Problem{rows}</table>")


def page(problem: ProblemType) -> str:
    """The page of one kind."""
    return _page(
        problem.title,
        f"<p>{_code(url(problem.kind))}, status {_statuses(problem)}"
        f"<h2>What it means</h2><p>{_text(problem.meaning)}"
        f"<h2>What to do</h2><p>{_text(problem.remedy)}"
        f"<h2>Example</h2><pre>{html.escape(_example(problem))}</pre>"
        f'<p><a href="{PATH}">All problems</a>',
    )


def markdown() -> Iterator[str]:
    """The lines of `docs/problems.md`."""
    yield from (
        "# Problems",
        "",
        _INTRODUCTION,
        "",
        "Made from the table in `service/api/problem_types.py` by `make docs`.",
    )
    for problem in PROBLEM_TYPES.values():
        yield from ("", f"## {problem.kind}", "", f"{problem.title}. Status {_statuses(problem)}.", "")
        yield from (problem.meaning, "", f"What to do: {problem.remedy}", "")
        yield from ("```json", _example(problem), "```")


def _example(problem: ProblemType) -> str:
    return orjson.dumps(problem.example, option=orjson.OPT_INDENT_2).decode()


def _statuses(problem: ProblemType) -> str:
    return " or ".join(f"{status} {HTTPStatus(status).phrase}" for status in problem.statuses)


def _page(title: str, body: str) -> str:
    return (
        f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="{_STYLE}">'
        f"<main><h1>{html.escape(title)}</h1>{body}</main></html>"
    )


def _text(text: str) -> str:
    """`text` as HTML; what stands between backticks is code."""
    return re.sub(r"`(.+?)`", lambda match: _code(html.unescape(match[1])), html.escape(text))


def _code(text: str) -> str:
    return f"<code>{html.escape(text)}</code>"


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in markdown())
