"""The command `jobservice`: starts the service, and talks to a running one as any other client does.

Exit codes: 0 the job is SUCCESS or the command did its work, 1 the job is FAILED or CANCELLED or the service could not
start, 2 the command or its input is wrong, 3 no service answers, 130 interrupted. What was asked for goes to stdout,
everything else to stderr.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import json as json_module
import math
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NoReturn

import pydantic
from cyclopts import App, CycloptsError, Parameter
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from service import __version__
from service.access import ApiKey, Rate, Role
from service.client import ApiError, Client, File, Job, Plugin, ServiceUnreachableError, media_type_of
from service.errors import InvalidKeyError, ServiceError
from service.models import DEFAULT_TENANT, JSON, JobOptions, JobStatus, Timestamp, later, timestamp
from service.settings import ClientSettings, Settings

if TYPE_CHECKING:
    from service.key_management import KeyManagementService

#: Tables for a pipe are as wide as their content needs, not as a terminal that is not there.
_PIPE_WIDTH: Final = 250
_LINE_WIDTH: Final = 88
_STDIO: Final = Path("-")
_STYLE_OF: Final[Mapping[str, str]] = {
    JobStatus.PENDING: "yellow",
    JobStatus.RUNNING: "cyan",
    JobStatus.SUCCESS: "green",
    JobStatus.FAILED: "red",
    JobStatus.CANCELLED: "magenta",
    "available": "green",
    "loading": "yellow",
    "unavailable": "red",
    "valid": "green",
    "expired": "yellow",
    "revoked": "red",
}
#: Control characters of foreign text could steer the terminal; tab and newline cannot.
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_PASSWORD: Final = re.compile(r"(?<=://)([^/@:]*):[^/]*(?=@)|((?<=[?&]password=)[^&]*)", re.IGNORECASE)


class Exit(enum.IntEnum):
    """What the shell is told."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    INTERRUPTED = 130
    BROKEN_PIPE = 141


class UsageError(Exception):
    """The command cannot be carried out as it was given; the text says why and what to do."""


_Json = Annotated[bool, Parameter(negative=(), show_default=False, help="Print JSON, as the service sent it")]
_ServiceSettings = Annotated[Settings | None, Parameter(name="*")]
_JobId = Annotated[str, Parameter(name="ID")]
_Many = Parameter(negative=(), show_default=False)
_Output = Annotated[
    Path | None, Parameter(name=("--output", "-o"), help="Write the result to this file, not to standard output")
]
_Wait = Annotated[
    bool, Parameter(negative=(), show_default=False, help="Wait for the end of the job and show its progress")
]


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Which service to talk to, and how to print what it says."""

    settings: Annotated[ClientSettings | None, Parameter(name="*")] = None
    json: _Json = False

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """A client of it; `UsageError` when the address is none."""
        settings = self.settings or ClientSettings()
        try:
            client = Client(settings.url, settings.api_key)
        except ValueError as error:
            raise UsageError(f"--url (JOBSERVICE_URL): {error}") from error
        async with client:
            yield client


app = App(
    name="jobservice",
    version=__version__,
    help="Runs plugins as durable jobs behind an HTTP API.",
    help_epilogue=(
        "Every setting is an option, an environment variable JOBSERVICE_NAME, or a line of .env: "
        "`jobservice config` shows them.\n"
        "Exit codes: 0 done, 1 the job FAILED or was CANCELLED, 2 wrong usage or input, 3 no service answers."
    ),
    help_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
    exit_on_error=False,
    print_error=False,
)


def main() -> NoReturn:
    """Run the command line of this process and exit with its code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """The exit code of a command line; every failure is told in a line or two on stderr."""
    try:
        code = app(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.BROKEN_PIPE
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except (
        CycloptsError,
        UsageError,
        ApiError,
        ServiceUnreachableError,
        ServiceError,
        OSError,
        pydantic.ValidationError,
    ) as error:
        return _tell(error, as_json="--json" in arguments)
    except Exception as error:
        # A person at a terminal is told what happened, not where in our code.
        if os.environ.get("JOBSERVICE_LOG_LEVEL", "").lower() == "debug":
            raise
        _say(f"jobservice: Unexpected {type(error).__name__}: {error}", style="red")
        _say("This is a fault of jobservice itself; JOBSERVICE_LOG_LEVEL=debug shows where.")
        return Exit.FAILED
    return Exit.OK if code is None else int(code)


def _tell(error: Exception, *, as_json: bool) -> Exit:
    exit_code, message, hint = _explained(error)
    if as_json:
        problem = error.problem if isinstance(error, ApiError) else None
        _say(json_module.dumps({"message": message, "hint": hint, "exit_code": exit_code, "problem": problem}))
    else:
        _say(f"jobservice: {message}", style="red")
        if hint:
            _say(hint)
    return exit_code


def _explained(error: Exception) -> tuple[Exit, str, str | None]:
    match error:
        case CycloptsError(__cause__=pydantic.ValidationError() as invalid) | (pydantic.ValidationError() as invalid):
            return (
                Exit.USAGE,
                "; ".join(map(_misfit, invalid.errors(include_url=False))),
                "See: jobservice config --help",
            )
        case CycloptsError():
            command = " ".join(("jobservice", *(error.command_chain or ())))
            return Exit.USAGE, str(error), f"See: {command} --help"
        case UsageError() | InvalidKeyError():
            return Exit.USAGE, str(error), None
        case ServiceUnreachableError():
            return (
                Exit.UNREACHABLE,
                str(error),
                "Start it with `jobservice serve`, or name another: --url, JOBSERVICE_URL.",
            )
        case ApiError() if error.status >= 500 or error.status == 429:
            return Exit.UNREACHABLE, f"The service cannot do this now ({error.status}): {error}", "Try again later."
        case ApiError():
            return Exit.USAGE, f"The service refused ({error.status}): {error}", _ADVICE.get(error.status)
        case OSError():
            place = f"{error.filename}: " if error.filename else ""
            return Exit.FAILED, f"{place}{error.strerror or error}", None
        case _:
            return Exit.FAILED, str(error), None


#: What to do about a refusal, where the refusal itself does not say.
_ADVICE: Final[Mapping[int, str]] = {
    401: "Set JOBSERVICE_API_KEY to a key of this service.",
    404: "See what there is: `jobservice jobs`, `jobservice plugins`.",
    409: "See what became of it: `jobservice show ID`.",
    413: "The service's limit is its setting JOBSERVICE_MAX_BODY_MB.",
    422: "See what the plugin takes: `jobservice plugins` lists them, `jobservice plugins NAME` tells all of one.",
}


def _misfit(place: ErrorDetails) -> str:
    """What is wrong with one setting, by the names under which it may have been given."""
    name = "_".join(map(str, place["loc"]))
    return f"{_option(name)} ({_variable(name)}): {place['msg']}, not {place['input']!r}"


@app.command
def serve(*, settings: _ServiceSettings = None) -> int:
    """Run the service until SIGTERM or Ctrl-C; running jobs may then finish."""
    settings = settings or Settings()
    # The service side takes a second to import, which neither a client command nor a wrong setting should pay for.
    from service.app import run_service

    return run_service(settings)


@app.command
def work(
    *,
    plugin: Annotated[tuple[str, ...], _Many, Parameter(name=("--plugin", "-p"))] = (),
    settings: _ServiceSettings = None,
) -> int:
    """Run jobs from a shared PostgreSQL without listening for requests, until SIGTERM or Ctrl-C.

    Parameters:
        plugin: Take jobs of this plugin only; may be repeated. Default: of every plugin installed here
    """
    settings = settings or Settings()
    # As in `serve`.
    from service.app import run_service

    return run_service(settings, listen=False, only_plugins=plugin)


@app.command
async def migrate(*, settings: _ServiceSettings = None, json: _Json = False) -> None:
    """Bring the database to this version, as `serve` and `work` do when they start."""
    settings = settings or Settings()
    # As in `serve`.
    from service.app import migrate as migrate_database

    revision = await migrate_database(settings)
    url = _redacted(settings.resolved_database_url)
    _put({"database_url": url, "revision": revision} if json else f"The database {url} is at revision {revision}.")


@app.command
async def submit(
    file: Annotated[Path | None, Parameter(name="FILE", allow_leading_hyphen=True)] = None,
    /,
    *,
    plugin: Annotated[str, Parameter(name=("--plugin", "-p"))],
    field: Annotated[tuple[str, ...], _Many, Parameter(name=("--field", "-f"))] = (),
    payload: str | None = None,
    mime_type: str | None = None,
    priority: int = 0,
    tag: Annotated[tuple[str, ...], _Many] = (),
    metadata: str | None = None,
    timeout_s: float | None = None,
    max_attempts: int | None = None,
    run_at: str | None = None,
    expires_at: str | None = None,
    idempotency_key: str | None = None,
    wait: _Wait = False,
    output: _Output = None,
    service: Service = Service(),
) -> Exit:
    """Send a job. Prints its id; with --wait its result.

    Args:
        file: The picture, or any file that the plugin takes; `-` is standard input; a .json file is the whole payload.
        plugin: Plugin to run; `jobservice plugins` lists them.
        field: Further field of the payload, as NAME=VALUE; may be repeated.
        payload: The whole payload as JSON, instead of FILE and fields.
        mime_type: What FILE is, if neither its name nor its first bytes tell.
        priority: -100 to 100; higher starts earlier.
        tag: Label to find the job by; may be repeated.
        metadata: Your own data, a JSON object.
        timeout_s: Limit of its execution in seconds, if lower than the plugin's.
        max_attempts: How often it may be tried, 1 to 100; default: what the plugin says, or 1.
        run_at: The job may not start before, as 2026-01-31T12:00:00Z.
        expires_at: The job may not start after.
        idempotency_key: The same key never makes a second job.
    """
    if output and not wait:
        raise UsageError("--output needs --wait: there is no result before the job has ended.")
    if file and str(file).startswith("-") and file != _STDIO:
        raise UsageError(f"Unknown option: {file}. See: jobservice submit --help")
    fields = dict(_pair(text) for text in field)
    whole = _json_object("--payload", payload) if payload is not None else None
    data = None if file is None else await asyncio.to_thread(_read_input, file)
    if whole is not None and file:
        raise UsageError("FILE and --payload are two ways to say the same: give one of them.")
    if data is not None and file and file.suffix == ".json" and mime_type is None:
        whole, data = _json_object(str(file), data), None
    if whole is not None and fields:
        raise UsageError("--field goes with a FILE that is not JSON: put the fields into the JSON payload.")
    options = JobOptions(
        priority=priority,
        tags=tag,
        metadata={} if metadata is None else _json_object("--metadata", metadata),
        timeout_s=timeout_s,
        max_attempts=max_attempts,
        run_at=None if run_at is None else Timestamp(run_at),
        expires_at=None if expires_at is None else Timestamp(expires_at),
    )
    async with service.client() as client:
        if whole is not None:
            job = await client.submit(plugin, whole, options=options, idempotency_key=idempotency_key)
        else:
            media_type = mime_type or media_type_of(str(file), data or b"")
            job = await client.submit_file(
                plugin, data, media_type=media_type, fields=fields, options=options, idempotency_key=idempotency_key
            )
        if not wait:
            _put(job.document if service.json else job.id)
            return Exit.OK
        return await _show_result(client, await _followed(client, job.id), output, as_json=service.json)


@app.command
async def jobs(
    *,
    status: JobStatus | None = None,
    plugin: str | None = None,
    tag: str | None = None,
    error_type: str | None = None,
    limit: int = 20,
    service: Service = Service(),
) -> None:
    """List jobs, newest first.

    Args:
        status: Only jobs in this status.
        plugin: Only jobs of this plugin.
        tag: Only jobs with this tag.
        error_type: Only jobs that failed with this type of error.
        limit: At most so many.
    """
    async with service.client() as client:
        listing = client.jobs(status=status, plugin=plugin, tag=tag, error_type=error_type, limit=limit)
        found = [job async for job in listing]
    if service.json:
        _put([job.document for job in found])
        return
    table = _table("id", "plugin", "status", "created (UTC)", "took", "what")
    for job in found:
        table.add_row(
            job.id, _safe(job.plugin), _coloured(job.status), _moment(job.created_at), _took(job), _safe(_remark(job))
        )
    _print(table)


@app.command
async def show(job_id: _JobId, /, *, wait: _Wait = False, service: Service = Service()) -> Exit:
    """Show everything about one job; with --wait once it has ended."""
    async with service.client() as client:
        job = await (_followed(client, job_id) if wait else client.get(job_id))
    if service.json:
        _put(job.document)
    else:
        _print(_details(job))
    return _outcome(job) if wait else Exit.OK


@app.command
async def result(
    job_id: _JobId, /, *, output: _Output = None, wait: _Wait = False, service: Service = Service()
) -> Exit:
    """Print the result of a job, or write it to a file; bytes as they are, everything else as JSON."""
    async with service.client() as client:
        job = await (_followed(client, job_id) if wait else client.get(job_id))
        if not job.status.is_terminal:
            raise UsageError(f"Job {job.id} is {job.status}: it has no result yet. Wait for it: --wait.")
        return await _show_result(client, job, output, as_json=service.json)


@app.command
async def cancel(job_id: _JobId, /, *, service: Service = Service()) -> None:
    """Cancel a job: at once if it waits, as soon as its worker is stopped if it runs."""
    async with service.client() as client:
        job = await client.cancel(job_id)
    if service.json:
        _put(job.document)
    elif job.status is JobStatus.CANCELLED:
        _put(f"Job {job.id} is CANCELLED.")
    else:
        _put(f"Job {job.id} is being stopped; see `jobservice show {job.id} --wait`.")


@app.command
async def plugins(
    name: Annotated[str | None, Parameter(name="NAME")] = None, /, *, service: Service = Service()
) -> None:
    """List the installed plugins, or show what one of them takes and gives."""
    async with service.client() as client:
        found = await client.plugins() if name is None else [await client.plugin(name)]
    if service.json:
        documents = [plugin.document for plugin in found]
        _put(documents if name is None else documents[0])
    elif name is None:
        table = _table("plugin", "version", "state", "what")
        for plugin in found:
            table.add_row(_safe(plugin.name), plugin.version or "", _coloured(plugin.state), _safe(_about(plugin)))
        _print(table)
    else:
        _print(_manual(found[0]))


@app.command
def config(*, settings: _ServiceSettings = None, service: Service = Service()) -> None:
    """Show every setting in effect and where it comes from; passwords and keys are hidden."""
    settings = settings or Settings()
    calling = service.settings or ClientSettings()
    shown = {"database_url": _redacted(settings.resolved_database_url), "url": _redacted(calling.url)}
    if calling.api_key:
        shown["api_key"] = "***"
    rows = [*_effective(settings, shown), *_effective(calling, shown)]
    if service.json:
        _put({row.name: {"value": row.value, "source": row.source, "variable": row.variable} for row in rows})
        return
    table = _table("setting", "value", "from", "option", "variable")
    for row in rows:
        value = "" if row.value is None else str(row.value)
        table.add_row(row.name, _safe(value), row.source, _option(row.name), row.variable)
    _print(table)


keys = App(name="keys", help="Make, list and revoke API keys, in the database itself; needs no running service.")
tenants = App(name="tenants", help="List tenants, and limit how many of their jobs may wait.")
app.command(keys)
app.command(tenants)


@keys.command(name="create")
async def create_key(
    name: Annotated[str, Parameter(name="NAME")],
    /,
    *,
    tenant: str = DEFAULT_TENANT,
    role: Annotated[tuple[Role, ...], _Many] = (Role.SUBMIT, Role.READ),
    days: float | None = None,
    rate: float | None = None,
    burst: int | None = None,
    settings: _ServiceSettings = None,
    json: _Json = False,
) -> None:
    """Make an API key and print it. It is shown this once: only a hash of it is kept.

    Args:
        name: What the key is for.
        tenant: Whose jobs it sees and makes; a new one is made.
        role: What it may do; may be repeated.
        days: It expires after so many.
        rate: Requests a second in the long run; default: the service's setting.
        burst: Requests at once; default: the rate, rounded up.
    """
    allowed = None if rate is None else Rate(per_s=rate, burst=max(1, math.ceil(rate)) if burst is None else burst)
    if rate is None and burst is not None:
        raise UsageError("--burst goes with --rate: how fast it may be filled again.")
    async with _keys(settings) as management:
        key, secret = await management.create(
            name,
            tenant=tenant,
            roles=role,
            expires_at=None if days is None else later(timestamp(), days * 86_400),
            rate=allowed,
        )
    if json:
        _put({**_key_document(key), "key": secret})
        return
    _put(secret)
    _say(f"The key {key.prefix} of tenant {key.tenant} may {', '.join(sorted(key.roles))}. It is not shown again.")


@keys.command(name="list")
async def list_keys(*, settings: _ServiceSettings = None, json: _Json = False) -> None:
    """List the API keys, oldest first; their secrets are kept nowhere."""
    async with _keys(settings) as management:
        found = await management.list_keys()
    if json:
        _put([_key_document(key) for key in found])
        return
    table = _table("key", "name", "tenant", "roles", "state", "expires (UTC)", "last used (UTC)")
    now = timestamp()
    for key in found:
        table.add_row(
            key.prefix, key.name, key.tenant, ",".join(sorted(key.roles)), _coloured(key.state(now)),
            _moment(key.expires_at), _moment(key.last_used_at),
        )  # fmt: skip
    _print(table)


@keys.command(name="revoke")
async def revoke_key(
    prefix: Annotated[str, Parameter(name="PREFIX")],
    /,
    *,
    settings: _ServiceSettings = None,
    json: _Json = False,
) -> None:
    """Make the API key that begins with PREFIX worthless, for ever; a running service knows within 5 seconds."""
    async with _keys(settings) as management:
        key = await management.revoke(prefix)
    _put(_key_document(key) if json else f"The key {key.prefix} ({key.name}) is revoked.")


@tenants.command(name="list")
async def list_tenants(*, settings: _ServiceSettings = None, json: _Json = False) -> None:
    """List the tenants that have a key or a limit of their own."""
    async with _keys(settings) as management:
        quotas = await management.list_quotas()
    if json:
        _put([{"tenant": name, "max_queued": most} for name, most in quotas.items()])
        return
    table = _table("tenant", "jobs that may wait")
    for name, most in quotas.items():
        table.add_row(name, "" if most is None else str(most))
    _print(table)


@tenants.command(name="limit")
async def limit_tenant(
    tenant: Annotated[str, Parameter(name="TENANT")],
    most: Annotated[int | None, Parameter(name="JOBS")] = None,
    /,
    *,
    settings: _ServiceSettings = None,
) -> None:
    """Let at most JOBS of a tenant's jobs wait; without JOBS the service's own limit is its limit again."""
    async with _keys(settings) as management:
        await management.set_quota(tenant, most)
    _put(f"At most {most} jobs of {tenant} wait." if most is not None else f"{tenant} has no limit of its own.")


@contextlib.asynccontextmanager
async def _keys(settings: Settings | None) -> AsyncIterator[KeyManagementService]:
    settings = settings or Settings()
    # As in `serve`.
    from service.app import open_keys

    async with open_keys(settings) as management:
        yield management


def _key_document(key: ApiKey) -> dict[str, JSON]:
    return {
        "id": key.id,
        "prefix": key.prefix,
        "name": key.name,
        "tenant": key.tenant,
        "roles": sorted(key.roles),
        "rate_per_s": key.rate and key.rate.per_s,
        "burst": key.rate and key.rate.burst,
        "state": key.state(timestamp()),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "last_used_at": key.last_used_at,
    }


@dataclasses.dataclass(frozen=True, slots=True)
class _Setting:
    name: str
    variable: str
    value: JSON
    source: Literal["option", "environment", ".env", "default"]


def _effective(settings: BaseSettings, shown: Mapping[str, str]) -> Iterator[_Setting]:
    kind = type(settings)
    without_options = kind()
    environment, dot_env = EnvSettingsSource(kind)(), DotEnvSettingsSource(kind)()
    for name, value in settings.model_dump(mode="json").items():
        source: Literal["option", "environment", ".env", "default"]
        if getattr(settings, name) != getattr(without_options, name):
            source = "option"
        elif name in environment:
            source = "environment"
        else:
            source = ".env" if name in dot_env else "default"
        yield _Setting(name, _variable(name), shown.get(name, value), source)


def _variable(name: str) -> str:
    return f"JOBSERVICE_{name.upper()}"


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


async def _followed(client: Client, job_id: str) -> Job:
    """The job once it has ended, with a progress bar until then where stderr is a terminal."""
    console = Console(stderr=True)
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task(job_id, total=None, note="")

    def watch(job: Job) -> None:
        progress = job.progress
        bar.update(
            task,
            description=f"{_safe(job.plugin)} {job.status}",
            total=1.0 if progress else None,
            completed=progress.fraction if progress else 0,
            note=_safe(progress.message) if progress else "",
        )

    try:
        with bar:
            return await client.wait(job_id, watch)
    except asyncio.CancelledError:
        _say(f"Stopped waiting; job {job_id} goes on. Follow it: jobservice show {job_id} --wait")
        raise
    except ServiceUnreachableError:
        _say(f"Lost sight of job {job_id}; the service keeps it. Follow it later: jobservice show {job_id} --wait")
        raise


async def _show_result(client: Client, job: Job, output: Path | None, *, as_json: bool) -> Exit:
    if job.status is not JobStatus.SUCCESS:
        if as_json:
            _put(job.document)
        _say(f"jobservice: Job {job.id} is {job.status}" + (f": {_remark(job)}" if job.error else "."), style="red")
        return _outcome(job)
    if as_json and output is None:
        _put(job.document)
        return Exit.OK
    found = await client.result(job.id)
    data = found.data if isinstance(found, File) else (_laid_out(found) + "\n").encode()
    if output is not None:
        await _write(output, data, job)
        if as_json:
            _put(job.document)
        else:
            _say(f"Wrote {output} ({len(data):,} bytes).")
    elif not sys.stdout.isatty():
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
    elif isinstance(found, File):
        raise UsageError(f"The result is a file ({found.media_type}, {len(data):,} bytes): name one with --output.")
    else:
        _put(_pretty(found))
    return Exit.OK


async def _write(output: Path, data: bytes, job: Job) -> None:
    try:
        await asyncio.to_thread(output.write_bytes, data)
    except OSError as error:
        raise UsageError(
            f"Cannot write {output}: {(error.strerror or str(error)).lower()}. "
            f"The service keeps the result: jobservice result {job.id} --output FILE"
        ) from error


def _outcome(job: Job) -> Exit:
    return Exit.OK if job.status is JobStatus.SUCCESS else Exit.FAILED


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"--field {text!r}: write it as NAME=VALUE.")
    return name, value


def _json_object(place: str, text: str | bytes) -> dict[str, JSON]:
    try:
        value = json_module.loads(text)
    except ValueError as error:
        raise UsageError(f"{place} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise UsageError(f'{place} is not a JSON object like {{"name": "value"}}.')
    return value


def _read_input(file: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == _STDIO else file.read_bytes()
    except OSError as error:
        raise UsageError(f"Cannot read {file}: {(error.strerror or str(error)).lower()}.") from error


def _remark(job: Job) -> str:
    """The one line that says most about where a job is."""
    if job.error:
        return f"{job.error['type']}: {job.error['message']}"
    if job.progress and not job.status.is_terminal:
        return f"{job.progress.fraction:.0%} {job.progress.message}".rstrip()
    return ""


def _about(plugin: Plugin) -> str:
    return plugin.reason or plugin.description or ""


def _details(job: Job) -> Table:
    attempt = f"{job.attempt} of {job.max_attempts}"
    rows: list[tuple[str, str | Text]] = [
        ("id", job.id),
        ("plugin", f"{job.plugin} {job.plugin_version or ''}"),
        ("status", _coloured(job.status)),
        ("error" if job.error else "progress", _remark(job)),
        ("attempt", attempt if job.attempt else ""),
        ("tags", ", ".join(job.tags)),
        ("created", _moment(job.created_at)),
        ("started", _moment(job.started_at)),
        ("finished", f"{_moment(job.finished_at)} {_took(job) and f'(took {_took(job)})'}"),
        ("payload", _pretty(job.payload)),
        ("result", "" if job.result is None else _pretty(job.result)),
        ("files", "\n".join(f"{name}  {path}" for name, path in job.artifacts.items())),
    ]
    return _sheet(rows)


def _manual(plugin: Plugin) -> Table:
    return _sheet(
        [
            ("plugin", f"{plugin.name} {plugin.version or ''} ({plugin.distribution})"),
            ("about", plugin.description or ""),
            ("state", _coloured(plugin.state)),
            ("reason", plugin.reason or ""),
            ("takes", "" if plugin.input_schema is None else _pretty(plugin.input_schema)),
            ("gives", "" if plugin.output_schema is None else _pretty(plugin.output_schema)),
        ]
    )


def _sheet(rows: Sequence[tuple[str, str | Text]]) -> Table:
    sheet = Table.grid(padding=(0, 2))
    sheet.add_column(style="dim", no_wrap=True)
    sheet.add_column(overflow="fold")
    for name, value in rows:
        if isinstance(value, Text) or value.strip():
            sheet.add_row(name, value if isinstance(value, Text) else _safe(value.strip()))
    return sheet


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        # The last column is the one that may be long.
        table.add_column(column, no_wrap=column != columns[-1], overflow="fold")
    return table


def _coloured(status: str) -> Text:
    return Text(status, style=_STYLE_OF.get(status, ""))


def _moment(at: str | None) -> str:
    return at[:19].replace("T", " ") if at else ""


def _took(job: Job) -> str:
    if not job.started_at or not job.finished_at:
        return ""
    return f"{_seconds(job.finished_at) - _seconds(job.started_at):.1f} s"


def _seconds(at: Timestamp) -> float:
    return datetime.fromisoformat(at).timestamp()


def _redacted(url: str) -> str:
    return _PASSWORD.sub(lambda match: f"{match[1]}:***" if match[1] is not None else "***", url)


def _safe(text: str) -> Text:
    return Text(_CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text))


def _pretty(value: Any) -> str:
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", _laid_out(value))


def _laid_out(value: Any, indent: str = "") -> str:
    """JSON text for people: what fits into a line is in one."""
    line = json_module.dumps(value, ensure_ascii=False)
    if len(indent) + len(line) <= _LINE_WIDTH or not isinstance(value, dict | list):
        return line
    inner = indent + "  "
    if isinstance(value, list):
        items = [inner + _laid_out(item, inner) for item in value]
        return "[\n" + ",\n".join(items) + f"\n{indent}]"
    members = [
        f"{inner}{json_module.dumps(name, ensure_ascii=False)}: {_laid_out(item, inner)}"
        for name, item in value.items()
    ]
    return "{\n" + ",\n".join(members) + f"\n{indent}}}"


def _put(value: Any) -> None:
    """Text, or one JSON document, on stdout."""
    sys.stdout.write((value if isinstance(value, str) else json_module.dumps(value, ensure_ascii=False)) + "\n")


def _print(table: Table) -> None:
    terminal = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)
    with terminal.capture() as capture:
        terminal.print(table)
    # Cells are padded up to the widest one.
    sys.stdout.write("".join(line.rstrip() + "\n" for line in capture.get().splitlines()))


def _say(text: str, *, style: str = "") -> None:
    """Text for the person at the terminal, on stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(_safe(text), style=style)
