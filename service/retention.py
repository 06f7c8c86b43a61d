"""`RetentionService`: takes away what is kept no longer: rows, bytes, and files that no row names."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from typing import Final

import structlog

from service.db import job_removals, pruning
from service.db.blob_files import GRACE_S
from service.db.blob_references import Freed
from service.db.database import Database
from service.db.job_removals import Overdue
from service.db.pruning import BEGINNING, DueFile, EndedJob, OverdueParts, Place, SettledFiles
from service.metrics import Metrics
from service.models import Timestamp, later
from service.retention_rules import Retention

#: So many ended jobs are looked at at once, and as many go in one transaction at most.
PAGE: Final = 200
#: So many files are removed between two looks at the database.
_FILES: Final = 200
_DIRECTORIES: Final = 256
#: Rows without a job are kept for so long at least: a process that works has said so more lately.
_WITHOUT_A_JOB_S: Final = 86_400.0
#: How long after it was decided that a job has ended its row may become visible: processes commit in another order.
_SETTLE_S: Final = 60.0

log = structlog.get_logger(__name__)


class RetentionService:
    """Prunes page by page, each in a transaction of its own.

    Under one rule jobs become due in the order in which they ended. So a place for each age is all that is remembered,
    and what is kept longer is not read again until the next start.
    """

    def __init__(self, database: Database, rules: Retention, metrics: Metrics, *, grace_s: float = GRACE_S) -> None:
        self._database = database
        self._rules = rules
        self._metrics = metrics
        self._grace_s = grace_s
        self._places: dict[float, Place] = dict.fromkeys(rules.ages_s, BEGINNING)
        self._directory = 0

    async def prune(self) -> None:
        """Take away all that is due now; the writer is left alone for as long as each page took.

        Raises `ServiceUnavailableError`: then what is left goes another time.
        """
        if not self._places:
            return
        loop = asyncio.get_running_loop()
        now = await self._now()
        for age_s in self._places:
            place = self._places[age_s]
            there_is_more = True
            while there_is_more:
                began = loop.time()
                page = await pruning.find_ended(self._database.reader, place, later(now, -age_s), PAGE)
                await self._prune_page(page, age_s)
                there_is_more = len(page) == PAGE
                if page:
                    place = page[-1].place
                self._places[age_s] = min(place, (later(now, -age_s - _SETTLE_S), BEGINNING[1]))
                if there_is_more:
                    await asyncio.sleep(loop.time() - began)
        if self._rules.longest_s != math.inf:
            kept_s = max(self._rules.longest_s, _WITHOUT_A_JOB_S)
            await self._database.writer.write(pruning.prune_rows_without_a_job, kept_s)

    async def remove_files(self) -> None:
        """Remove files whose last row has gone, unless somebody is about to name them again; raises as `prune`."""
        now = await self._now()
        while True:
            due = await pruning.find_due_files(self._database.reader, now, _FILES)
            if not due:
                return
            unnamed = [file for file in due if not file.is_named]
            gone = await asyncio.to_thread(self._remove, unnamed)
            settled = SettledFiles(
                done=[file for file in due if file.is_named or file in gone],
                put_off=[file for file in unnamed if file not in gone],
                wait_s=max(self._grace_s, 1.0),
            )
            await self._database.writer.write(pruning.settle_files, settled)
            self._metrics.removed_files.inc(len(gone))

    async def _now(self) -> Timestamp:
        """By the clock that decides what goes: by another one what is not due yet would be passed by, and forgotten."""
        return await self._database.writer.write(pruning.read_clock, None)

    def _remove(self, files: list[DueFile]) -> set[DueFile]:
        gone = set()
        for file in files:
            try:
                if self._database.blobs.files.remove(file.sha256, grace_s=self._grace_s):
                    gone.add(file)
            except OSError as error:
                log.warning("a file cannot be removed", sha256=file.sha256, error=str(error))
        return gone

    async def look_for_files(self) -> None:
        """Look through the next of 256 directories for files that no row names, and have those removed.

        Submissions that never came to their commit leave them behind. Raises as `prune`.
        """
        number, self._directory = self._directory, (self._directory + 1) % _DIRECTORIES
        try:
            names = await asyncio.to_thread(self._database.blobs.files.look, number, grace_s=self._grace_s)
        except OSError as error:
            log.warning("stored files cannot be looked through", error=str(error))
            return
        for start in range(0, len(names), _FILES):
            found = await self._database.writer.write(pruning.take_on_files, names[start : start + _FILES])
            if found:
                log.info("files that nobody names", count=found)

    async def _prune_page(self, page: list[EndedJob], age_s: float) -> None:
        rows = {job.id: job.plugin for job in page if self._rules.kept_s(None, job.plugin, job.status) == age_s}
        parts = [
            (job.id, part)
            for job in page
            for part in job.parts
            if job.id not in rows and self._rules.kept_s(part, job.plugin, job.status) == age_s
        ]
        freed = Freed()
        pruned: Counter[str] = Counter()
        released = 0
        if rows:
            gone = await self._database.writer.write(job_removals.prune, Overdue(job_ids=[*rows], kept_s=age_s))
            pruned.update(rows[job_id] for job_id in gone.job_ids)
            freed += gone.freed
        if parts:
            released, more = await self._database.writer.write(pruning.release, OverdueParts(parts=parts, kept_s=age_s))
            freed += more
        for plugin, count in pruned.items():
            self._metrics.pruned_jobs.labels(plugin).inc(count)
        self._metrics.freed_bytes.inc(freed.size_bytes)
        if pruned or released:
            log.info("pruned", jobs=pruned.total(), parts=released, freed_bytes=freed.size_bytes, days=age_s / 86_400)
