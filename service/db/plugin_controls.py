"""What operators set for plugins: operations for `Writer.write`, every read, and what claims may take under it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from service.db.reader import Reader
from service.db.schema import jobs
from service.db.schema import plugin_controls as controls
from service.db.statements import Statement, batch, batch_table, literal
from service.db.transaction import Transaction
from service.models import Timestamp
from service.plugin_controls import PluginControl

#: Beyond any number of jobs that run at once.
_UNLIMITED: Final = 2**31 - 1

_BUCKET: Final = (controls.c.rate_per_s, controls.c.burst, controls.c.tokens, controls.c.tokens_at)
_is_this: Final = controls.c.plugin == sa.bindparam("of_plugin")
_PAUSE_VALUES: Final = ("paused_at", "refuses_jobs", "reason")
_LIMIT_VALUES: Final = ("concurrency", "rate_per_s", "burst", "tokens", "tokens_at")


def _setting(*names: str, **others: Any) -> Statement:
    """Set columns of a plugin's row, which is made with `others` where there is none."""
    new = {name: sa.bindparam(name, type_=controls.c[name].type) for name in ("plugin", *names)}
    insert = postgresql.insert(controls).values({**new, **others})
    return Statement(
        insert.on_conflict_do_update(index_elements=["plugin"], set_={name: insert.excluded[name] for name in names})
    )


_PAUSE = _setting(*_PAUSE_VALUES)
_LIMIT = _setting(*_LIMIT_VALUES, refuses_jobs=sa.false())
# A row where nothing is set any more must not stay.
_END_PAUSE = (
    Statement(sa.delete(controls).where(_is_this, controls.c.concurrency.is_(None), controls.c.rate_per_s.is_(None))),
    Statement(
        sa.update(controls).where(_is_this).values(paused_at=sa.null(), refuses_jobs=sa.false(), reason=sa.null())
    ),
)
_END_LIMITS = (
    Statement(sa.delete(controls).where(_is_this, controls.c.paused_at.is_(None))),
    Statement(sa.update(controls).where(_is_this).values({name: sa.null() for name in _LIMIT_VALUES})),
)
_SELECT_BUCKET = Statement(sa.select(*_BUCKET).where(_is_this).with_for_update())
_SELECT_ALL = Statement(
    sa.select(controls.c.plugin, *(controls.c[field.name] for field in dataclasses.fields(PluginControl)))
)

# A row that another process holds is passed by: no claim waits for another one, in whatever order they come.
_limits: Final = (
    sa.select(controls.c.plugin, controls.c.concurrency, *_BUCKET)
    .where(controls.c.paused_at.is_(None))
    .order_by(controls.c.plugin)
    .with_for_update(skip_locked=True)
)
_known: Final = batch_table("known_plugins", jobs.c.plugin, parameter="plugins")
_LOCK_LIMITS = Statement(_limits)
_LOCK_LIMITS_OF_PLUGINS = Statement(_limits.where(controls.c.plugin.in_(sa.select(_known.c.plugin))))
_counted: Final = batch_table("counted", jobs.c.plugin)
# An expression, so that nobody reads all jobs there ever were of these plugins by the index of plugins.
_plugin: Final = jobs.c.plugin.concat(literal(""))
_COUNT_RUNNING = Statement(
    sa.select(_plugin, sa.func.count())
    .where(jobs.c.status == literal("RUNNING"), _plugin.in_(sa.select(_counted.c.plugin)))
    .group_by(_plugin)
)
_SET_TOKENS = Statement(
    sa.update(controls).where(_is_this).values(tokens=sa.bindparam("left"), tokens_at=sa.bindparam("at"))
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Start no jobs of the plugin; with `refuses_jobs` take no new ones either."""

    plugin: str
    refuses_jobs: bool
    reason: str | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How many jobs of the plugin may run at once, and start a second; `burst` is set where `rate_per_s` is."""

    plugin: str
    concurrency: int | None
    rate_per_s: float | None
    burst: int | None


async def pause(tx: Transaction, items: Sequence[Pause]) -> list[None]:
    """Pause plugins; again only changes what goes with it."""
    for item in items:
        await tx.fetch(
            _PAUSE, plugin=item.plugin, paused_at=await tx.now(), refuses_jobs=item.refuses_jobs, reason=item.reason
        )
    return [None] * len(items)


async def resume(tx: Transaction, items: Sequence[str]) -> list[None]:
    """Let jobs of plugins start again."""
    for plugin in items:
        for statement in _END_PAUSE:
            await tx.fetch(statement, of_plugin=plugin)
    return [None] * len(items)


async def set_limits(tx: Transaction, items: Sequence[Limits]) -> list[None]:
    """Set all limits of plugins anew. A bucket that is there keeps its tokens, a new one begins full."""
    for item in items:
        if item.concurrency is None and item.rate_per_s is None:
            for statement in _END_LIMITS:
                await tx.fetch(statement, of_plugin=item.plugin)
            continue
        tokens = None
        if item.rate_per_s is not None and item.burst is not None:
            before = await tx.fetch(_SELECT_BUCKET, of_plugin=item.plugin)
            tokens = min(float(item.burst), _tokens(before[0], await tx.now()) if before else math.inf)
        await tx.fetch(
            _LIMIT,
            plugin=item.plugin,
            concurrency=item.concurrency,
            rate_per_s=item.rate_per_s,
            burst=item.burst,
            tokens=tokens,
            tokens_at=None if tokens is None else await tx.now(),
        )
    return [None] * len(items)


async def load(reader: Reader) -> dict[str, PluginControl]:
    """Everything that is set, by plugin."""
    names = [field.name for field in dataclasses.fields(PluginControl)]
    found = {}
    for plugin, *values in await reader.fetch(_SELECT_ALL):
        control = PluginControl(**dict(zip(names, values, strict=True)))
        found[plugin] = dataclasses.replace(control, refuses_jobs=bool(control.refuses_jobs))
    return found


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """That so many jobs of a plugin may start now; `tokens` is what its bucket holds, None where it has none."""

    room: int
    tokens: float | None


async def grant(tx: Transaction, plugins: Collection[str] | None) -> dict[str, Grant]:
    """What may start of each limited plugin, among `plugins` if given; until this transaction ends nobody else's claim.

    A plugin that is not in the answer is paused, or just being claimed for elsewhere.
    """
    if plugins is None:
        rows = await tx.fetch(_LOCK_LIMITS)
    else:
        rows = await tx.fetch(_LOCK_LIMITS_OF_PLUGINS, plugins=batch((name,) for name in plugins))
    if not rows:
        return {}
    # A statement of its own: it sees what was committed before the rows were had.
    running = dict(await tx.fetch(_COUNT_RUNNING, batch=batch((row[0],) for row in rows)))
    grants = {}
    for plugin, concurrency, *bucket in rows:
        room = _UNLIMITED if concurrency is None else max(0, concurrency - running.get(plugin, 0))
        tokens = None if bucket[0] is None else _tokens(bucket, await tx.now())
        grants[plugin] = Grant(room=room if tokens is None else min(room, int(tokens)), tokens=tokens)
    return grants


async def take(tx: Transaction, grants: Mapping[str, Grant], started: Mapping[str, int]) -> None:
    """Take the tokens of the jobs that were started under `grants`."""
    for plugin, count in sorted(started.items()):
        if plugin in grants and (tokens := grants[plugin].tokens) is not None:
            await tx.fetch(_SET_TOKENS, of_plugin=plugin, left=tokens - count, at=await tx.now())


def _tokens(bucket: Sequence[Any], now: Timestamp) -> float:
    """What a bucket (rate, burst, tokens, and when that was) holds now; full where there was none."""
    rate_per_s, burst, tokens, at = bucket
    if rate_per_s is None:
        return math.inf
    passed_s = (datetime.fromisoformat(now) - datetime.fromisoformat(at)).total_seconds()
    return float(min(burst, tokens + max(0.0, passed_s) * rate_per_s))
