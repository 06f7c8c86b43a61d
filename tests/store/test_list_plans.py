"""Lists of jobs: by any filter a page is found through an index, in its order, however little the filter finds."""

from __future__ import annotations

import itertools
import sqlite3
from pathlib import Path

import pytest

from service.db import job_queries
from service.models import JobStatus

FILTERS = ("plugin", "tag", "error_type", "created_after", "created_before", "after")
#: What a filter alone, or a status alone, must be found by; the others follow the ids themselves.
SOUGHT = {
    (None, "plugin"): "ix_jobs_plugin (plugin=? AND tenant=?)",
    (None, "tag"): "ix_job_tags_tag (tag=? AND tenant=?)",
    (None, "error_type"): "ix_jobs_error_type (error_type=? AND tenant=?)",
    (None, "created_before"): "sqlite_autoindex_jobs_1 (id<?)",
    (JobStatus.PENDING, None): "ix_jobs_unfinished (status=? AND tenant=?)",
    (JobStatus.RUNNING, None): "ix_jobs_unfinished (status=? AND tenant=?)",
    (JobStatus.FAILED, None): "ix_jobs_failed (tenant=?)",
    (JobStatus.FAILED, "plugin"): "ix_jobs_failed_of_plugin (plugin=? AND tenant=?)",
    (JobStatus.CANCELLED, None): "ix_jobs_cancelled (tenant=?)",
}


def plan(path: Path, status: JobStatus | None, filters: frozenset[str], *, of_default: bool = True) -> list[str]:
    compiled = job_queries._list_statement(status, filters, of_default=of_default).sqlite
    values = compiled.bind(of_tenant="a", limit=9, **dict.fromkeys(filters, "x"))
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {compiled.text}", values)]
    finally:
        connection.close()


@pytest.mark.parametrize(("status", "name"), SOUGHT)
def test_a_filter_that_finds_little_reads_little(migrated_file: Path, status: JobStatus | None, name: str | None):
    steps = plan(migrated_file, status, frozenset({name} - {None}))
    assert SOUGHT[status, name] in steps[0], steps


def test_no_list_is_sorted(migrated_file: Path):
    for status in (None, *JobStatus):
        for count in range(len(FILTERS) + 1):
            for filters in itertools.combinations(FILTERS, count):
                for of_default in (True, False):
                    steps = plan(migrated_file, status, frozenset(filters), of_default=of_default)
                    assert not any("TEMP B-TREE" in step for step in steps), (status, filters, steps)
