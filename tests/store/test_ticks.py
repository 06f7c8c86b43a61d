"""When schedules tick, above all where clocks are changed."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service import ticks
from service.errors import ScheduleInvalidError
from service.models import Timestamp, later, timestamp
from service.schedule_models import Misfire, Timing

NOON = Timestamp("2026-06-01T12:00:00.000Z")


def local(timing, start, count):
    """The next ticks as the clocks of the zone show them, and how far those are from UTC."""
    zone = ZoneInfo(timing.timezone)
    moment = timestamp(datetime.fromisoformat(start).replace(tzinfo=zone))
    found = []
    for _ in range(count):
        moment = ticks.after(timing, moment, moment)
        found.append(datetime.fromisoformat(moment).astimezone(zone).isoformat()[5:])
    return found


# Clocks in Berlin: at 02:00 on 29 March 2026 it is 03:00, at 03:00 on 25 October it is 02:00 again.


def test_a_time_that_clocks_leave_out_comes_after_the_gap():
    daily = Timing(cron="30 2 * * *", timezone="Europe/Berlin")
    assert local(daily, "2026-03-28T00:00", 3) == [
        "03-28T02:30:00+01:00",
        "03-29T03:00:00+02:00",
        "03-30T02:30:00+02:00",
    ]


def test_a_time_that_clocks_show_twice_comes_once_at_the_first_showing():
    daily = Timing(cron="30 2 * * *", timezone="Europe/Berlin")
    assert local(daily, "2026-10-24T12:00", 2) == ["10-25T02:30:00+02:00", "10-26T02:30:00+01:00"]
    second_showing = Timestamp("2026-10-25T01:15:00.000Z")
    assert ticks.after(daily, NOON, second_showing) == "2026-10-26T01:30:00.000Z"


def test_what_goes_by_the_time_that_passes_has_no_gap_and_both_hours():
    hourly = Timing(cron="30 * * * *", timezone="Europe/Berlin")
    assert local(hourly, "2026-03-29T01:00", 2) == ["03-29T01:30:00+01:00", "03-29T03:30:00+02:00"]
    assert local(hourly, "2026-10-25T01:45", 3) == [
        "10-25T02:30:00+02:00",
        "10-25T02:30:00+01:00",
        "10-25T03:30:00+01:00",
    ]


def test_an_interval_never_looks_at_clocks_and_never_drifts():
    timing = Timing(every_s=3600, timezone="Europe/Berlin", starts_at=Timestamp("2026-01-01T00:00:00.250Z"))
    assert ticks.after(timing, NOON, Timestamp("2026-03-29T00:30:00.000Z")) == "2026-03-29T01:00:00.250Z"
    assert ticks.after(timing, NOON, Timestamp("2036-10-25T00:30:00.000Z")) == "2036-10-25T01:00:00.250Z"


def test_an_interval_counts_from_its_start_else_from_its_anchor():
    timing = Timing(every_s=7)
    assert ticks.after(timing, NOON, NOON) == later(NOON, 7)
    started = Timing(every_s=7, starts_at=later(NOON, 3))
    assert ticks.after(started, NOON, NOON) == later(NOON, 3)
    assert ticks.after(started, NOON, later(NOON, 3)) == later(NOON, 10)


@pytest.mark.parametrize("when", [{"cron": "0 * * * *"}, {"every_s": 3600}])
def test_a_start_may_be_the_first_moment_of_the_calendar(when):
    timing = Timing(starts_at=Timestamp("0001-01-01T00:00:00.000Z"), **when)
    ticks.check(timing, NOON)
    assert ticks.after(timing, NOON, NOON) == later(NOON, 3600)
    assert ticks.due(timing, NOON, later(NOON, 3600), later(NOON, 7200)) == [later(NOON, 7200)]


@pytest.mark.parametrize("when", [{"cron": "0 * * * *"}, {"every_s": 3600}])
def test_no_tick_is_before_the_start_or_after_the_end(when):
    timing = Timing(starts_at=later(NOON, 7200), ends_at=later(NOON, 10_800), **when)
    assert ticks.after(timing, NOON, NOON) == later(NOON, 7200)
    assert ticks.after(timing, NOON, later(NOON, 7200)) == later(NOON, 10_800)
    assert ticks.after(timing, NOON, later(NOON, 10_800)) is None


@pytest.mark.parametrize(
    ("cron", "after_noon"),
    [
        ("@hourly", "2026-06-01T13:00:00.000Z"),
        ("@Daily", "2026-06-02T00:00:00.000Z"),
        ("@weekly", "2026-06-07T00:00:00.000Z"),
        ("@monthly", "2026-07-01T00:00:00.000Z"),
        ("@yearly", "2027-01-01T00:00:00.000Z"),
        ("*/15 * * * *", "2026-06-01T12:15:00.000Z"),
        ("0 9 * * MON-FRI", "2026-06-02T09:00:00.000Z"),
        ("0 0 L * *", "2026-06-30T00:00:00.000Z"),
        ("0 0 29 2 *", "2028-02-29T00:00:00.000Z"),
    ],
)
def test_expressions(cron, after_noon):
    timing = Timing(cron=cron)
    ticks.check(timing, NOON)
    assert ticks.after(timing, NOON, NOON) == after_noon


@pytest.mark.parametrize(
    ("timing", "pointer"),
    [
        ({"cron": "* * * *"}, "/cron"),
        ({"cron": "* * * * * *"}, "/cron"),
        ({"cron": "61 * * * *"}, "/cron"),
        ({"cron": "@reboot"}, "/cron"),
        ({"cron": "0 0 30 2 *"}, "/cron"),
        ({"cron": "0 0 */31 2 MON#2"}, ""),  # never
        ({"every_s": 1, "timezone": "Mars/Olympus"}, "/timezone"),
        ({"every_s": 1, "timezone": "../../etc/passwd"}, "/timezone"),
        ({"every_s": 1, "timezone": "Europe"}, "/timezone"),
        ({"every_s": 1, "ends_at": Timestamp("2026-06-01T12:00:00.999Z")}, ""),
        ({"cron": "0 0 1 1 *", "starts_at": Timestamp("9999-12-31T23:59:59.999Z")}, ""),
    ],
)
def test_what_cannot_be_followed_is_refused_by_its_field(timing, pointer):
    with pytest.raises(ScheduleInvalidError) as refused:
        ticks.check(Timing(**timing), NOON)
    assert refused.value.problem.pointer == pointer


CRONS = ["* * * * *", "*/7 */5 * * *", "30 2 * * *", "0,30 2,3 * * *", "15 */2 * * *", "0 0 * * *", "59 23 L * *"]
ZONES = ["UTC", "Europe/Berlin", "America/Havana", "Australia/Lord_Howe", "Africa/Cairo", "Asia/Kathmandu"]
MOMENTS = st.integers(0, 10 * 366 * 86_400_000).map(
    lambda milliseconds: timestamp(datetime(2020, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds))
)


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.builds(
            Timing, cron=st.sampled_from(CRONS), timezone=st.sampled_from(ZONES), misfire=st.sampled_from(Misfire)
        ),
        st.builds(Timing, every_s=st.integers(1, 100_000), misfire=st.sampled_from(Misfire)),
    ),
    MOMENTS,
    st.integers(0, 30 * 86_400),
)
def test_ticks_go_forward_and_those_due_are_the_newest_of_them(timing, start, away_s):
    first = ticks.after(timing, start, start)
    assert first > start
    now = later(first, away_s / 10)
    expected, tick = [], first
    for _ in range(3000):
        if tick > now:
            break
        expected.append(tick)
        following = ticks.after(timing, start, tick)
        assert following > tick
        tick = following
    else:
        return  # too many to go through here
    newest = {Misfire.ONCE: 1, Misfire.ALL: ticks.MOST_MADE_UP, Misfire.SKIP: 11}[timing.misfire]
    expected = expected[-newest:]
    if timing.misfire is Misfire.SKIP:
        grace = timestamp(datetime.fromisoformat(now) - timedelta(seconds=ticks.SKIP_AFTER_S))
        expected = [tick for tick in expected if tick >= grace]
    assert ticks.due(timing, start, first, now) == expected
    assert all(a < b for a, b in itertools.pairwise(expected))
