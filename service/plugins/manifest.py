"""What a plugin says about itself, as plain data that crosses process borders."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PluginSource:
    """An installed entry point, read from package metadata without importing anything."""

    name: str  # of the entry point, and so of the plugin
    value: str  # `module:attribute`
    distribution: str
    distribution_version: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PluginManifest:
    """Read in a worker from the plugin's attributes and annotations; the service never imports plugin code.

    `input_schema` and `output_schema` are JSON Schema 2020-12; a bytes field is `{"type": "string", "contentEncoding":
    "base64"}`. `input_schema` describes the payload `run` accepts, with `mime_type` always allowed. Limits are what
    the plugin asks for; None leaves it to the host, whose ceilings win in any case.
    """

    name: str
    version: str
    description: str
    input_schema: dict[str, Any]
    output_schema: dict[str, Any] | None
    untyped: bool  # takes the payload dict as it comes: `image` may be bare base64
    timeout_s: float | None = None
    setup_timeout_s: float | None = None  # for import and `setup` of a cold worker; default: timeout_s
    memory_mb: float | None = None
    concurrency: int | None = None
    max_attempts: int | None = None  # for jobs that do not say; default: 1
    short: bool = False  # declared short and repeatable: frames may be sent ahead of the running job
