"""After any history, each report says what counting from the jobs says, and two databases say the same."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.conftest import sqlite_url
from tests.reports.history import WEIGHTS, Step, random_steps
from tests.reports.proof import check, lived, say_the_same

KINDS = [kind for kind, weight in WEIGHTS.items() for _ in range(weight)]
STEPS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 10**6)), min_size=40, max_size=120)


async def test_reports_are_what_counting_says(database_url, tmp_path):
    async with lived(database_url, tmp_path, itertools.islice(random_steps(1), 250)) as database:
        await check(database)


def test_shrinking_histories_are_counted_right(migrated_file, tmp_path):
    @settings(
        max_examples=12, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    @given(STEPS)
    def prove(steps: list[Step]) -> None:
        url = sqlite_url(Path(shutil.copy(migrated_file, tmp_path / "jobs.db")))

        async def live() -> None:
            async with lived(url, tmp_path, steps) as database:
                await check(database)

        asyncio.run(live())

    prove()


async def test_two_databases_at_one_clock_agree_row_for_row(database_file, postgres_url, tmp_path):
    steps = list(itertools.islice(random_steps(2), 150))
    async with lived(sqlite_url(database_file), tmp_path, steps) as one, lived(postgres_url, tmp_path, steps) as other:
        assert await say_the_same(one, other) > 30
