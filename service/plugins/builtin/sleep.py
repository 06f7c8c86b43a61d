"""The plugin `sleep`: for trying progress, cancellation and time limits."""

from __future__ import annotations

import time
from typing import Annotated

from pydantic import Field

from service.plugins.context import Context

_STEP_S = 0.1


def sleep(
    context: Context,
    seconds: Annotated[float, Field(ge=0, le=86_400, description="How long to sleep")] = 1.0,
) -> dict[str, float]:
    """Sleeps, tells its progress, and wakes up when the job is cancelled."""
    start = time.monotonic()
    while (slept := time.monotonic() - start) < seconds:
        context.check_cancelled()
        context.progress(slept / seconds, f"slept {slept:.1f} of {seconds:g} s")
        time.sleep(min(_STEP_S, seconds - slept))
    context.progress(1.0, f"slept {seconds:g} s")
    return {"slept_s": slept}
