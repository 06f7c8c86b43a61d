"""How long what is kept: of a job's row, and of the bytes of its payload and result, for each plugin."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson

from service.models import JobPart, JobStatus

_DAY_S: Final = 86_400.0
_FOR_EVER: Final = math.inf


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Days from the end of a job; None is for ever. Nothing of a FAILED job goes before `failed_days`."""

    jobs_days: float | None = None
    failed_days: float | None = 0.0
    payload_bytes_days: float | None = None
    result_bytes_days: float | None = None


_EXAMPLE: Final = 'such as {"ocr": {"payload_bytes_days": 1}}'
_NAMES: Final = frozenset(field.name for field in dataclasses.fields(Keep))
_DAYS_OF: Final[Mapping[JobPart | None, str]] = {
    None: "jobs_days",
    JobPart.PAYLOAD: "payload_bytes_days",
    JobPart.RESULT: "result_bytes_days",
}


class Retention:
    """The times for which jobs are kept, and parts of them, in seconds."""

    def __init__(self, general: Keep, by_plugin: Mapping[str, Keep] | None = None) -> None:
        self._general = general
        self._by_plugin = dict(by_plugin or {})

    def kept_s(self, part: JobPart | None, plugin: str, status: JobStatus) -> float:
        """How long the bytes of a part are kept after the end of a job, or with None its row; infinity is for ever."""
        return _kept_s(self._by_plugin.get(plugin, self._general), part, is_failed=status is JobStatus.FAILED)

    @property
    def ages_s(self) -> list[float]:
        """The ages at which something goes."""
        return sorted({age for part in _DAYS_OF for age in self._kept(part)} - {_FOR_EVER})

    @property
    def longest_s(self) -> float:
        """The longest time for which the row of any job is kept."""
        return max(self._kept(None))

    def _kept(self, part: JobPart | None) -> Iterable[float]:
        return (
            _kept_s(keep, part, is_failed=is_failed)
            for keep in (self._general, *self._by_plugin.values())
            for is_failed in (False, True)
        )


def _kept_s(keep: Keep, part: JobPart | None, *, is_failed: bool) -> float:
    kept_s = _seconds(getattr(keep, _DAYS_OF[part]))
    return max(kept_s, _seconds(keep.failed_days)) if is_failed else kept_s


def _seconds(days: float | None) -> float:
    return _FOR_EVER if days is None else days * _DAY_S


def parse_by_plugin(text: str, general: Keep) -> dict[str, Keep]:
    """`{"plugin": {"jobs_days": 30, ...}}` as rules; what is left out is as for all. Raises `ValueError`."""
    if not text.strip():
        return {}
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"is not JSON (line {error.lineno}, column {error.colno}), {_EXAMPLE}") from None
    if not isinstance(document, dict):
        raise ValueError(f"is an object, plugins with their rules, {_EXAMPLE}")
    return {plugin: dataclasses.replace(general, **_rule(plugin, rule)) for plugin, rule in document.items()}


def _rule(plugin: str, rule: Any) -> dict[str, float | None]:
    if not isinstance(rule, dict) or not rule.keys() <= _NAMES:
        raise ValueError(f"{plugin}: is an object of {', '.join(sorted(_NAMES))}")
    for name, days in rule.items():
        if days is not None and (type(days) not in (int, float) or days < 0):
            raise ValueError(f"{plugin}/{name}: is a number of days, or null for ever")
    return rule
