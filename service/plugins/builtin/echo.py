"""The plugin `echo`: for trying the service and for measuring what it costs."""

from __future__ import annotations

from typing import Any


def echo(payload: dict[str, Any]) -> dict[str, Any]:
    """Returns its payload."""
    return payload


echo.short = True  # type: ignore[attr-defined]  # a plugin says so by an attribute, a function too
