"""Counters of plugins over all processes, kept in the transactions that end executions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from service.db.reader import Reader
from service.db.schema import plugin_metrics
from service.db.statements import Statement
from service.db.transaction import Transaction
from service.models import PluginMetrics, Timestamp


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """One execution that ended; `error` is its type and message, None for a success."""

    plugin: str
    at: Timestamp
    run_s: float | None
    error: str | None


def _upsert() -> Statement:
    table = plugin_metrics
    insert = postgresql.insert(table).values({column.name: sa.bindparam(column.name) for column in table.columns})
    new = insert.excluded
    sums = ("success_count", "error_count", "timed_count", "total_run_s")
    return Statement(
        insert.on_conflict_do_update(
            index_elements=["plugin"],
            set_={
                **{name: table.c[name] + new[name] for name in sums},
                "last_run_s": sa.func.coalesce(new.last_run_s, table.c.last_run_s),
                "last_used_at": new.last_used_at,
                "consecutive_errors": sa.case(
                    (new.success_count > sa.text("0"), new.consecutive_errors),
                    else_=table.c.consecutive_errors + new.consecutive_errors,
                ),
                "last_error": sa.func.coalesce(new.last_error, table.c.last_error),
            },
        )
    )


_UPSERT = _upsert()
_SELECT = Statement(sa.select(plugin_metrics))
_COUNT = Statement(
    sa.select(sa.func.coalesce(sa.func.sum(plugin_metrics.c.success_count + plugin_metrics.c.error_count), 0))
)


async def record_executions(tx: Transaction, executions: Iterable[Execution]) -> None:
    """Add `executions`, in the order they ended, to the counters of their plugins."""
    by_plugin: dict[str, list[Execution]] = {}
    for execution in executions:
        by_plugin.setdefault(execution.plugin, []).append(execution)
    # In one order everywhere, so that processes never wait for each other in a circle.
    await tx.execute_many(_UPSERT, [_row(plugin, ended) for plugin, ended in sorted(by_plugin.items())])


def _row(plugin: str, ended: list[Execution]) -> tuple[object, ...]:
    errors = [execution.error for execution in ended if execution.error is not None]
    times = [execution.run_s for execution in ended if execution.run_s is not None]
    trailing_errors = next((n for n, execution in enumerate(reversed(ended)) if execution.error is None), len(ended))
    return (
        plugin, len(ended) - len(errors), len(errors), len(times), sum(times), times[-1] if times else None,
        ended[-1].at, trailing_errors, errors[-1] if errors else None,
    )  # fmt: skip


async def count(reader: Reader) -> int:
    """How many executions have ever ended."""
    ((executions,),) = await reader.fetch(_COUNT)
    return int(executions)


async def load(reader: Reader) -> dict[str, PluginMetrics]:
    """The metrics of every plugin that was ever executed, by name."""
    return {
        plugin: PluginMetrics(
            success_count=successes,
            error_count=errors,
            last_run_s=last_run_s,
            mean_run_s=total_run_s / timed if timed else None,
            last_used_at=last_used_at,
            consecutive_errors=consecutive,
            last_error=last_error,
        )
        for plugin, successes, errors, timed, total_run_s, last_run_s, last_used_at, consecutive, last_error in (
            await reader.fetch(_SELECT)
        )
    }
