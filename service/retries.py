"""Whether a failed attempt is followed by another one, and when: the one place that decides it."""

from __future__ import annotations

import dataclasses
import random
import types
from collections.abc import Mapping
from typing import Final

from service.calls import CallReport
from service.models import ClaimedJob, ErrorType

#: What another attempt can mend. The same input, plugin and output would fail alike again.
IS_RETRIED: Final[Mapping[str, bool]] = types.MappingProxyType(
    {
        ErrorType.EXECUTION: True,
        ErrorType.TIME_LIMIT: True,
        ErrorType.MEMORY_LIMIT: True,
        ErrorType.WORKER_CRASHED: True,
        ErrorType.INTERNAL: True,
        ErrorType.VALIDATION: False,
        ErrorType.PLUGIN: False,
        ErrorType.INVALID_OUTPUT: False,
        ErrorType.EXPIRED: False,
        ErrorType.WORKER_LOST: False,
    }
)
#: However long a plugin asks to wait.
MAX_DELAY_S: Final = 7 * 86_400.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Exponential backoff with full jitter, in seconds: anything from 0 to `base_s * 2 ** (attempt - 1)`, or `cap_s`.

    Jitter over the whole range keeps jobs that failed together from coming back together.
    """

    base_s: float = 2.0
    cap_s: float = 600.0

    def delay_s(self, job: ClaimedJob, error_type: str, report: CallReport) -> float | None:
        """How long to wait before the next attempt; None where there is none. The plugin's own word goes first."""
        is_retried = IS_RETRIED.get(error_type, False) if report.retryable is None else report.retryable
        if not is_retried or job.attempt >= job.max_attempts:
            return None
        if report.retry_after_s is not None:
            return min(report.retry_after_s, MAX_DELAY_S)
        return random.uniform(0, min(self.cap_s, self.base_s * 2.0 ** (job.attempt - 1)))  # noqa: S311  # no secret
