"""When schedules tick: pure functions of a timing and a moment, the same in every process.

Cron is Debian's: five fields, or one of `ALIASES`. Where clocks are put forward or back, an expression that names its
minutes and hours ticks once for each time it names: a time that the clocks leave out comes with the first minute after
the gap, one that they show twice at the first showing. One whose minute or hour begins with `*` goes by the time that
passes: nothing in the gap, and both hours where one comes twice. Intervals never look at clocks.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import zoneinfo
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final

from cronsim import CronSim, CronSimError

from service.errors import FieldProblem, ScheduleInvalidError
from service.models import Timestamp, timestamp
from service.schedule_models import Misfire, Timing

#: Under `skip`, how old a tick may be that still makes a job.
SKIP_AFTER_S: Final = 10
#: Under `all`, how many missed ticks are made up, the newest ones.
MOST_MADE_UP: Final = 100
ALIASES: Final[Mapping[str, str]] = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}

_FIELDS: Final = 5
_TICK: Final = timedelta(milliseconds=1)  # what a `Timestamp` can tell apart
_FIRST_LOOK: Final = timedelta(minutes=1)
_WIDER: Final = 8


def check(timing: Timing, now: Timestamp) -> None:
    """Raise `ScheduleInvalidError`, naming the fields, unless `timing` can be followed and ticks again after `now`.

    Reads the list of time zones, and may look 50 years ahead: some 30 ms of work for a thread.
    """
    if timing.timezone not in _zones():
        raise ScheduleInvalidError(FieldProblem("/timezone", "must be a time zone of the IANA list, Europe/Berlin"))
    if timing.cron is not None:
        expression = _expression(timing.cron)
        if len(expression.split()) != _FIELDS:
            raise ScheduleInvalidError(
                FieldProblem(
                    "/cron",
                    f"must have {_FIELDS} fields (minute, hour, day of month, month, day of week) or be one of "
                    f"{', '.join(ALIASES)}; for seconds there is every_s",
                )
            )
        try:
            CronSim(expression, datetime.now(UTC))
        except CronSimError as error:
            raise ScheduleInvalidError(FieldProblem("/cron", f"is no cron expression: {error}")) from error
    if after(timing, now, now) is None:
        raise ScheduleInvalidError(FieldProblem("", "there is no tick in the time to come"))


def after(timing: Timing, anchor: Timestamp, moment: Timestamp) -> Timestamp | None:
    """The first tick after `moment`, or None. Intervals count from `starts_at`, else from `anchor`."""
    tick = next(_ticks(timing, anchor, datetime.fromisoformat(moment)), None)
    return None if tick is None else timestamp(tick)


def due(timing: Timing, anchor: Timestamp, next_at: Timestamp, now: Timestamp) -> list[Timestamp]:
    """The ticks from `next_at` to `now` that make a job, by the misfire rule; oldest first.

    `once`: the newest one. `skip`: those that are no older than `SKIP_AFTER_S`. `all`: every one, at most the
    `MOST_MADE_UP` newest. A service in good order finds one at a time, some milliseconds old, whatever the rule.
    """
    since, until = datetime.fromisoformat(next_at), datetime.fromisoformat(now)
    if timing.misfire is Misfire.SKIP:
        since = max(since, until - timedelta(seconds=SKIP_AFTER_S))
    most = 1 if timing.misfire is Misfire.ONCE else MOST_MADE_UP
    span = _FIRST_LOOK
    # Backwards in steps that grow: after a year away nobody goes through every minute of it.
    while True:
        start = max(since, until - span)
        ticks = itertools.takewhile(lambda tick: tick <= until, _ticks(timing, anchor, start - _TICK))
        newest = deque(ticks, maxlen=most)
        if len(newest) == most or start == since:
            return [timestamp(tick) for tick in newest]
        span *= _WIDER


def _ticks(timing: Timing, anchor: Timestamp, moment: datetime) -> Iterator[datetime]:
    """Every tick after `moment`, in UTC, up to the end of the calendar."""
    ends_at = None if timing.ends_at is None else datetime.fromisoformat(timing.ends_at)
    with contextlib.suppress(OverflowError):
        if timing.starts_at is not None:
            # The later one is put back: `starts_at` may be the first moment of the calendar.
            moment = max(moment + _TICK, datetime.fromisoformat(timing.starts_at)) - _TICK
        if timing.every_s is not None:
            start = datetime.fromisoformat(timing.starts_at or anchor)
            ticks = _intervals(start, timedelta(seconds=timing.every_s), moment)
        else:
            ticks = _cron(_expression(timing.cron or ""), _zone(timing.timezone), moment)
        yield from ticks if ends_at is None else itertools.takewhile(lambda tick: tick <= ends_at, ticks)


def _intervals(start: datetime, step: timedelta, moment: datetime) -> Iterator[datetime]:
    # From the start every time: errors of one tick are no errors of the next.
    first = max(0, (moment - start) // step + 1)
    return (start + number * step for number in itertools.count(first))


def _cron(expression: str, zone: tzinfo, moment: datetime) -> Iterator[datetime]:
    for local in CronSim(expression, moment.astimezone(zone)):
        tick = local.astimezone(UTC)
        # In an hour that clocks show twice it begins with the first one again.
        if tick > moment:
            moment = tick
            yield tick


def _expression(cron: str) -> str:
    return ALIASES.get(cron.strip().lower(), cron)


def _zone(name: str) -> tzinfo:
    return UTC if name == "UTC" else zoneinfo.ZoneInfo(name)


@functools.cache
def _zones() -> frozenset[str]:
    # What the machine's own clock shows is no zone that all processes agree on.
    return frozenset(zoneinfo.available_timezones() - {"localtime"})
