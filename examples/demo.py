"""Starts a real service on a fresh data directory, sends it pictures over HTTP, and prints what came back.

Exits 0 when every expected word and code was read, else 1. Usage: demo.py [DATA_DIR]; without it a temporary directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from service.client import Client, File, Job, media_type_of
from service.models import JobStatus

PICTURES = Path(__file__).parent / "pictures"
QUERY = """\
SELECT plugin, status, round(queue_s, 2) AS queue_s, round(run_s, 2) AS run_s, created_at
FROM report_jobs
ORDER BY job_id"""

COLUMNS = (
    TextColumn("{task.description:<10}"),
    BarColumn(),
    TextColumn("{task.fields[note]:<8}"),
    TimeElapsedColumn(),
)

console = Console(highlight=False, soft_wrap=True)


def main(data_dir: Path) -> int:
    """The exit code of one demonstration."""
    expected = json.loads((PICTURES / "expected.json").read_text())
    with running_service(data_dir) as url:
        console.print(f"The service listens on {url}; its data is in {data_dir}.\n")
        page, label, photo, thumbnail = asyncio.run(send(url))
        missing = [*check_page(page, expected["page.png"]), *check_label(label, expected["label.png"])]
        if isinstance(thumbnail, File):
            path = data_dir / f"thumbnail.{thumbnail.media_type.rpartition('/')[2]}"
            path.write_bytes(thumbnail.data)
            console.print(f"\n[bold]The thumbnail[/bold] of photo.jpg is {path} ({len(thumbnail.data):,} bytes).")
        else:
            missing.append(f"a thumbnail of photo.jpg ({photo.error})")
        print_rows(data_dir / "jobs.db")
    for what in missing:
        console.print(f"[red]Not found:[/red] {what}")
    return 1 if missing else 0


@contextlib.contextmanager
def running_service(data_dir: Path) -> Iterator[str]:
    """The address of a service of its own on a free port, started as `jobservice serve` is and stopped at the end."""
    log = data_dir / "service.log"
    with log.open("wb") as stderr:
        service = subprocess.Popen(  # noqa: S603 - this interpreter, with arguments of ours
            [sys.executable, "-m", "service", "serve", "--port", "0", "--data-dir", str(data_dir)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            # The demonstration is the same whatever this shell is set up for.
            env={name: value for name, value in os.environ.items() if not name.startswith("JOBSERVICE_")},
            cwd=data_dir,
        )
    try:
        yield address(service.stdout or (), log)
    finally:
        service.terminate()
        code = service.wait()
    if code:
        raise SystemExit(f"The service ended with exit code {code}; see {log}")


def address(lines: Iterable[str], log: Path) -> str:
    """Where the service says that it listens."""
    for line in lines:
        if found := re.search(r"http://[\w.:\[\]-]+", line):
            return found[0]
    raise SystemExit(f"The service did not start:\n{log.read_text()}")


async def send(url: str) -> tuple[Job, Job, Job, Mapping[str, Any] | File | None]:
    """The ended jobs of `ocr`, `barcode` and `thumbnail`, sent all at once, and what the last one made."""
    async with Client(url) as client:
        with Progress(*COLUMNS, console=console) as bars:
            page, label, photo = await asyncio.gather(
                follow(client, bars, "ocr", PICTURES / "page.png"),
                follow(client, bars, "barcode", PICTURES / "label.png"),
                follow(client, bars, "thumbnail", PICTURES / "photo.jpg"),
            )
        return page, label, photo, await client.result(photo.id) if photo.status is JobStatus.SUCCESS else None


async def follow(client: Client, bars: Progress, plugin: str, picture: Path) -> Job:
    """The ended job of one picture, with its progress on the terminal."""
    task = bars.add_task(plugin, total=1, note="")
    data = await asyncio.to_thread(picture.read_bytes)
    job = await client.submit_file(plugin, data, media_type=media_type_of(picture.name, data))
    return await client.wait(job.id, lambda job: draw(bars, task, job))


def draw(bars: Progress, task: TaskID, job: Job) -> None:
    """Bring one bar to where its job is."""
    fraction = job.progress.fraction if job.progress else 0.0
    bars.update(task, completed=1.0 if job.status.is_terminal else fraction, note=job.status)


def check_page(job: Job, expected: Mapping[str, Any]) -> list[str]:
    """Print the text that was read; which of the expected words are not in it."""
    text = str((job.result or {}).get("text", job.error))
    console.print("\n[bold]The text[/bold] of page.png:")
    console.print(text, style="cyan", markup=False)
    return [f"the words {words!r} in page.png" for words in expected["words"] if words not in text]


def check_label(job: Job, expected: Mapping[str, Any]) -> list[str]:
    """Print the codes that were read; which of the expected ones are not among them."""
    read = {(code["format"], code["text"]) for code in (job.result or {}).get("codes", ())}
    console.print("\n[bold]The codes[/bold] of label.png:" + ("" if job.result else f" {job.error}"))
    for kind, text in sorted(read):
        console.print(f"{kind}: {text}", style="cyan", markup=False)
    wanted = [(code["format"], code["text"]) for code in expected["codes"]]
    return [f"the {kind} code {text!r} in label.png" for kind, text in wanted if (kind, text) not in read]


def print_rows(database: Path) -> None:
    """Print what a person with SQL sees while the service is running."""
    console.print(f"\n[bold]The rows[/bold] in {database}:")
    console.print(QUERY, style="dim", markup=False)
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        cursor = connection.execute(QUERY)
        table = Table(*(column[0] for column in cursor.description), box=None, padding=(0, 2, 0, 0))
        for row in cursor:
            table.add_row(*map(str, row))
    console.print(table)


if __name__ == "__main__":
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="jobservice-demo-"))
    directory.mkdir(parents=True, exist_ok=True)
    sys.exit(main(directory.resolve()))
