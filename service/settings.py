"""What can be configured: one frozen object read once, from options, the environment (`JOBSERVICE_*`) and `.env`."""

from __future__ import annotations

import difflib
import io
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from dotenv.parser import parse_stream
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource, SettingsConfigDict

from service.errors import SettingsFileError
from service.retention_rules import Keep, Retention, parse_by_plugin
from service.webhook_urls import WebhookRules, parse_networks

_ENV_FILE: Final = ".env"
#: What variables for drills and tests begin with, behind the prefix.
_NO_SETTINGS: Final = ("failpoints", "test_")


# Of lines that it cannot read it says neither the file nor that they matter.
logging.getLogger("dotenv.main").setLevel(logging.ERROR)


def _named(place: object) -> object:
    # An empty path would be the working directory.
    if isinstance(place, str) and not place.strip():
        raise ValueError("is empty: name one, or leave it unset")
    return place


def _networks(text: str) -> str:
    parse_networks(text)
    return text


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(",") if part.strip())


def _waits(text: str) -> str:
    try:
        are_waits = all(0 <= wait_s <= 1e7 for wait_s in _numbers(text))
    except ValueError:
        are_waits = False
    if not are_waits:
        raise ValueError("waits are seconds between commas, such as 5,300,1800")
    return text


def _kept(text: str) -> str:
    parse_by_plugin(text, Keep())
    return text


class _FromEnvFile(BaseSettings):
    def __init__(self, **values: Any) -> None:
        """Raises `SettingsFileError` for a `.env` that cannot be read, or a line of it that is meant for this."""
        if (path := values.get("_env_file", _ENV_FILE)) is not None:
            _check_file(Path(path))
        super().__init__(**values)


def _check_file(path: Path) -> None:
    if not path.is_file():
        return
    try:
        statements = [*parse_stream(io.StringIO(path.read_text("utf-8")))]
    except UnicodeDecodeError as error:
        raise SettingsFileError(
            f"{path.absolute()} is not UTF-8 text (byte {error.start}): save it as UTF-8."
        ) from error
    for statement in statements:
        said = statement.original.string
        if statement.error and "JOBSERVICE" in said.upper():  # what else there is, is for other programs
            blank = said[: -len(said.lstrip())].count("\n")  # they are counted to the statement that follows
            raise SettingsFileError(
                f"{path.absolute()}, line {statement.original.line + blank}: this is not NAME=VALUE. "
                "Correct the line, or begin it with #."
            )


class Settings(_FromEnvFile):
    """Settings of a service process. Sizes are MB of 1,000,000 bytes, times are seconds."""

    model_config = SettingsConfigDict(
        env_prefix="JOBSERVICE_", env_file=_ENV_FILE, extra="ignore", frozen=True, allow_inf_nan=False
    )

    database_url: Annotated[str | None, BeforeValidator(_named)] = Field(
        None, description="SQLAlchemy URL; default: SQLite in DATA_DIR"
    )
    data_dir: Annotated[Path, BeforeValidator(_named)] = Field(
        Path("data"), description="Where the database, stored bytes and scratch files live"
    )
    host: str = Field("127.0.0.1", description="Address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 picks a free one")
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, description="Jobs that run at once")
    warm: int = Field(8, ge=0, description="Idle worker processes kept warm")
    warm_memory_mb: float = Field(4096, gt=0, description="Resident memory that idle workers may hold together")
    timeout_s: float = Field(300, gt=0, description="Ceiling for the execution time of any job")
    memory_mb: float = Field(2048, gt=0, le=1e9, description="Ceiling for the resident memory of any worker")
    lease_s: float = Field(30, ge=1, description="How long a runner may be silent before its jobs are taken back")
    retry_base_s: float = Field(2, ge=0, description="Longest wait before a second attempt; doubled for each next one")
    retry_cap_s: float = Field(600, ge=0, description="Longest wait before any attempt")
    plugin_wait_s: float = Field(
        86400,
        gt=0,
        description="How long jobs wait, from the start on, for a missing plugin; on PostgreSQL for ever",
    )
    max_body_mb: float = Field(20, gt=0, description="Largest request body accepted")
    max_result_mb: float = Field(
        64, gt=0, le=1e9, description="Largest result (JSON, bytes and artifacts together) accepted"
    )
    inline_blob_kb: float = Field(128, ge=0, description="Up to this size bytes live in the database")
    drain_s: float = Field(30, ge=0, description="How long running jobs may finish after SIGTERM")
    max_queued: int | None = Field(1_000_000, ge=0, description="How many jobs may wait; none more are taken")
    max_queued_per_tenant: int | None = Field(None, ge=0, description="How many jobs of one tenant may wait")
    max_queued_per_plugin: int | None = Field(None, ge=0, description="How many jobs of one plugin may wait")
    rate_per_s: float | None = Field(None, gt=0, description="Requests a second of one API key, in the long run")
    rate_burst: int | None = Field(None, ge=1, description="Requests of one API key at once; default: RATE_PER_S, up")
    max_connections: int = Field(10_000, ge=1, description="Connections open at once; then the longest idle one goes")
    max_streams: int = Field(1_000, ge=0, description="Streams of events open at once")
    max_streams_per_caller: int = Field(200, ge=0, description="Streams of events of one API key open at once")
    stream_s: float = Field(3600, gt=0, description="How long a stream of events goes on; its client then resumes")
    webhook_http: bool = Field(False, description="Webhooks may be sent over http, not over https alone")
    webhook_allow: Annotated[str, AfterValidator(_networks)] = Field(
        "", description="Networks, between commas, to which webhooks go although they are not public, on any port"
    )
    webhook_timeout_s: float = Field(15, gt=0, le=300, description="How long an attempt to deliver may take")
    webhook_retries_s: Annotated[str, AfterValidator(_waits)] = Field(
        "5,300,1800,7200,18000,36000,50400,72000,86400",
        description="Waits before the second, third, ... attempt to deliver to a webhook",
    )
    keep_jobs_days: float | None = Field(
        None, ge=0, description="How long jobs are kept after their end; default: for ever"
    )
    keep_failed_days: float | None = Field(0, ge=0, description="Nothing of a failed job goes before")
    keep_payload_bytes_days: float | None = Field(
        None, ge=0, description="How long the bytes of payloads are kept after the end of their job; default: with it"
    )
    keep_result_bytes_days: float | None = Field(
        None, ge=0, description="How long the bytes of results and artifacts are kept; default: with their job"
    )
    keep_by_plugin: Annotated[str, AfterValidator(_kept)] = Field(
        "", description='Other times for plugins, as JSON: `{"ocr": {"payload_bytes_days": 1}}`'
    )
    allow_anyone_who_reaches_this_port: bool = Field(
        False, description="Ask nobody for an API key, on any address: whoever reaches the port may do everything"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log line written; `debug` tells of jobs that succeeded too"
    )
    log_format: Literal["auto", "console", "json"] = Field("auto", description="Log lines for people or for machines")

    @property
    def resolved_database_url(self) -> str:
        """`database_url`, or the embedded SQLite file in `data_dir`."""
        return self.database_url or f"sqlite+aiosqlite:///{self.data_dir.absolute() / 'jobs.db'}"

    @property
    def webhook_rules(self) -> WebhookRules:
        """Where webhooks may go."""
        return WebhookRules(http=self.webhook_http, networks=parse_networks(self.webhook_allow))

    @property
    def webhook_waits_s(self) -> Sequence[float]:
        """`webhook_retries_s` as numbers."""
        return _numbers(self.webhook_retries_s)

    @property
    def retention(self) -> Retention:
        """How long what is kept."""
        general = Keep(
            jobs_days=self.keep_jobs_days,
            failed_days=self.keep_failed_days,
            payload_bytes_days=self.keep_payload_bytes_days,
            result_bytes_days=self.keep_result_bytes_days,
        )
        return Retention(general, parse_by_plugin(self.keep_by_plugin, general))


class ClientSettings(_FromEnvFile):
    """Settings of whoever calls a service."""

    model_config = SettingsConfigDict(env_prefix="JOBSERVICE_", env_file=_ENV_FILE, extra="ignore", frozen=True)

    url: Annotated[str, BeforeValidator(_named)] = Field("http://127.0.0.1:8080", description="Where the service is")
    api_key: str | None = Field(None, repr=False, description="Key that the service asks for, if it does")


def unknown_variables() -> Mapping[str, str | None]:
    """Names in the environment and `.env` that look like settings and are none, each with the one that may be meant."""
    known = sorted(name for kind in (Settings, ClientSettings) for name in kind.model_fields)
    given = {name for source in (EnvSettingsSource, DotEnvSettingsSource) for name in source(Settings).env_vars}
    prefix = variable_of("").lower()
    names = sorted(name.removeprefix(prefix) for name in given if name.startswith(prefix))
    return {
        variable_of(name): next(map(variable_of, difflib.get_close_matches(name, known, n=1)), None)
        for name in names
        if name not in known and not name.startswith(_NO_SETTINGS)
    }


def variable_of(setting: str) -> str:
    """The environment variable of a setting."""
    return f"JOBSERVICE_{setting.upper()}"


def option_of(setting: str) -> str:
    """The option of a setting on the command line."""
    return "--" + setting.replace("_", "-")
