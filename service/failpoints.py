"""Named places at which a test may kill, fail or delay this process; inert unless `JOBSERVICE_FAILPOINTS` is set."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import itertools
import os
import re
import signal
import time
from collections.abc import Iterator, Mapping
from typing import Final

VARIABLE: Final = "JOBSERVICE_FAILPOINTS"

_RULE: Final = re.compile(
    r"(?P<point>[a-z_.]+)=(?P<action>kill|raise|sleep|delay)(?:\((?P<seconds>[0-9.]+)\))?@(?P<hit>[1-9][0-9]*|\*)"
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What to do at a point, at its `hit`-th passing (from 1) or, when None, at each."""

    action: str
    seconds: float
    hit: int | None
    passed: Iterator[int]

    def is_due(self) -> bool:
        """Count one passing; whether it is one to act at."""
        return next(self.passed) == self.hit or self.hit is None

    def act(self, point: str) -> None:
        """Kill this process, or raise `OSError`; or hold the calling thread."""
        match self.action:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "raise":
                raise OSError(errno.EIO, f"failpoint {point}")
            case _:
                time.sleep(self.seconds)


def parse(text: str) -> dict[str, Rule]:
    """Rules by point from `point=action@hit;...`, where action is kill, raise, sleep(S) or delay(S), hit a number or *.

    Raises `ValueError` for anything else.
    """
    rules = {}
    for part in filter(None, map(str.strip, text.split(";"))):
        found = _RULE.fullmatch(part)
        if found is None or (found["action"] in ("sleep", "delay")) != (found["seconds"] is not None):
            raise ValueError(f"{VARIABLE}: {part!r} is not point=kill@3, =raise@1, =sleep(0.4)@* or =delay(0.4)@*.")
        rules[found["point"]] = Rule(
            action=found["action"],
            seconds=float(found["seconds"] or 0),
            hit=None if found["hit"] == "*" else int(found["hit"]),
            passed=itertools.count(1),
        )
    return rules


_rules: Final[Mapping[str, Rule]] = parse(os.environ.get(VARIABLE, ""))

#: Asked where even the name of a point would cost: false in every process but a tortured one.
active: Final = bool(_rules)


def hit(point: str) -> None:
    """Pass `point`: nothing, unless a rule is due there. `sleep` and `delay` hold the calling thread."""
    if (rule := _rules.get(point)) is not None and rule.is_due():
        rule.act(point)


async def reach(point: str) -> None:
    """Pass `point` on the event loop: as `hit`, but `delay` holds only the calling task."""
    if (rule := _rules.get(point)) is not None and rule.is_due():
        if rule.action == "delay":
            await asyncio.sleep(rule.seconds)
        else:
            rule.act(point)


def environment() -> dict[str, str]:
    """What a child must be given to pass the same points; empty where there are no rules."""
    return {VARIABLE: os.environ[VARIABLE]} if active else {}
