from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from service.api.route import Route
from service.api.routes import ROUTES
from tests.api.conftest import Live

DOCUMENT = Path(__file__).parents[2] / "docs" / "http.md"


def _examples() -> list[tuple[str, str]]:
    """Commands of the console blocks, each with the output that follows it."""
    examples = []
    for block in re.findall(r"```console\n(.*?)```", DOCUMENT.read_text(), re.DOTALL):
        for example in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            lines = example.splitlines()
            end = next(n for n, line in enumerate(lines) if not line.endswith("\\")) + 1
            examples.append(("\n".join(lines[:end]), "\n".join(lines[end:])))
    return examples


def test_every_command_of_the_document_answers_as_printed(live: Live, png: bytes, tmp_path: Path) -> None:
    (tmp_path / "page.png").write_bytes(png)
    mark = "-- end of a command --"
    examples = _examples()
    script = "\n".join(f"{command}\necho\necho '{mark}'" for command, _ in examples)
    run = subprocess.run(
        ["bash", "-c", script.replace("http://127.0.0.1:8080", live.url)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=90,
        check=False,
    )
    outputs = run.stdout.replace("\r", "").split(mark)[:-1]
    assert len(outputs) == len(examples)
    for (command, expected), output in zip(examples, outputs, strict=True):
        pattern = ".*".join(map(re.escape, expected.strip().split("…")))
        # An example that ends in an ellipsis shows a beginning.
        assert re.fullmatch(pattern, output.strip(), re.DOTALL), f"{command}\n{output}"


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_is_in_the_document(route: Route) -> None:
    text = DOCUMENT.read_text()
    # The document says `/result` where the route is `/v1/jobs/{job_id}/result`.
    assert f"{route.path.removeprefix('/v1/jobs/{job_id}').removesuffix('/{name}')}" in text
