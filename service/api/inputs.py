"""What requests may say beside the payload, declared once for the check and for the OpenAPI document."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, NotRequired

import orjson
from multidict import MultiMapping
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from pydantic_core import ErrorDetails, PydanticCustomError
from typing_extensions import TypedDict

from service import strict_json
from service.api import misfits
from service.api.problems import Problem, bad_request, in_body, unacceptable
from service.api.text_forms import NO_NUL, PAGE_CURSOR, TextForm
from service.codec import check_document, escape_pointer
from service.errors import (
    FieldProblem,
    NotStorableError,
    PayloadInvalidError,
    PluginNotFoundError,
    ServiceError,
    WebhookUrlError,
)
from service.models import (
    JSON,
    MAX_ATTEMPTS,
    JobOptions,
    JobQuery,
    JobRequest,
    JobStatus,
    JobWebhook,
    Timestamp,
    timestamp,
)
from service.webhook_models import WebhookEvent
from service.webhook_urls import MAX_URL_CHARS

MAX_METADATA_BYTES: Final = 16_384
MAX_WAIT_S: Final = 60
MAX_PAGE: Final = 500
#: Options of `POST /v1/plugins/{name}/jobs` are query parameters with this prefix.
OPTION_PREFIX: Final = "job."
#: What stands before the names of options in the places of a query.
QUERY_ROOT: Final = f"/{OPTION_PREFIX}"

_RFC_3339: Final = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+-]\d{2}:\d{2})", re.ASCII)

#: Already as we write it; only whether there is such a day must be asked.
_STORED: Final = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:[0-5]\d\.\d{3}Z", re.ASCII)
_LEAP_SECOND: Final = re.compile(r":60(?=[.Z+-])")


def _whole(value: Any) -> Any:
    # JSON has one kind of number: 5.0 is an integer (JSON Schema 2020-12, 6.1.1).
    return int(value) if type(value) is float and value.is_integer() else value


def _moment(text: str) -> str:
    try:
        if _STORED.fullmatch(text):
            datetime.fromisoformat(text)
            return text
        if not _RFC_3339.fullmatch(text):
            raise ValueError
        # A leap second is the end of its minute.
        moment = datetime.fromisoformat(_LEAP_SECOND.sub(":59", text.upper()))
    except ValueError:
        raise PydanticCustomError("moment", "must be a time of RFC 3339 with an offset, 2026-01-31T12:00:00Z") from None
    try:
        return timestamp(moment)
    except OverflowError:
        # Its offset takes it out of the calendar: the calendar's edge means the same.
        return timestamp(moment.replace(tzinfo=UTC))


def _storable(value: dict[str, JSON]) -> dict[str, JSON]:
    if len(orjson.dumps(value)) > MAX_METADATA_BYTES:
        raise PydanticCustomError("metadata_size", f"must not be larger than {MAX_METADATA_BYTES} bytes of JSON")
    try:
        check_document(value)
    except NotStorableError as error:
        raise PydanticCustomError("not_storable", "{what}", {"what": str(error)}) from error
    return value


WHOLE: Final = BeforeValidator(_whole)

# `Field` stands before the validators: behind them pydantic publishes its own names instead of JSON Schema's.
Moment = Annotated[str, Field(json_schema_extra={"format": "date-time"}), AfterValidator(_moment)]
Tag = Annotated[str, Field(min_length=1, max_length=100), NO_NUL]
PluginName = Annotated[str, Field(min_length=1, max_length=200), NO_NUL]

Priority = Annotated[int, Field(ge=-100, le=100, description="Higher starts earlier", default=0), WHOLE]
TimeoutS = Annotated[float, Field(gt=0, le=1e9, description="Limit of its execution, if lower than the plugin's")]
MaxAttempts = Annotated[
    int,
    Field(ge=1, le=MAX_ATTEMPTS, description="How often it may be tried; default: what the plugin says, or 1"),
    WHOLE,
]
Tags = Annotated[list[Tag], Field(max_length=20, description="Labels to find the job by")]
Metadata = Annotated[
    dict[str, JSON],
    Field(description=f"Your own data, kept with the job; at most {MAX_METADATA_BYTES} bytes of JSON"),
    AfterValidator(_storable),
]

WebhookUrl = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_URL_CHARS,
        description="`https://…`: a public address that takes messages of Standard Webhooks",
        examples=["https://example.com/hooks/jobs"],
        json_schema_extra={"format": "uri"},
    ),
]


WebhookEvents = Annotated[
    list[Annotated[WebhookEvent, Field(strict=False)]],
    Field(min_length=1, max_length=len(WebhookEvent), description="Which ends of jobs; default: all"),
]

ErrorTypeName = Annotated[str, Field(min_length=1, max_length=100), NO_NUL]

IdempotencyKey = Annotated[
    str,
    Field(
        min_length=1,
        max_length=255,
        description="One key makes at most one job; a repeated request is answered with that job",
    ),
    TextForm("[!-~]+", "must be of printable ASCII characters, without spaces"),
]

STRICT: Final = ConfigDict(strict=True, extra="forbid")
#: Of queries, whose values are all text.
TEXT: Final = ConfigDict(extra="forbid")


@with_config(STRICT)
class JobWebhookInput(TypedDict):
    """Where the end of a job is to be heard of."""

    url: WebhookUrl
    events: NotRequired[WebhookEvents]


@with_config(STRICT)
class OptionsInput(TypedDict):
    """Options of a job."""

    priority: NotRequired[Priority]
    run_at: NotRequired[Annotated[Moment, Field(description="The job may not start before")]]
    expires_at: NotRequired[Annotated[Moment, Field(description="The job may not start after; then it is FAILED")]]
    timeout_s: NotRequired[TimeoutS]
    max_attempts: NotRequired[MaxAttempts]
    tags: NotRequired[Tags]
    metadata: NotRequired[Metadata]
    webhook: NotRequired[JobWebhookInput]


@with_config(STRICT)
class JobInput(OptionsInput):
    """A job to be done."""

    plugin: Annotated[PluginName, Field(examples=["echo"])]
    payload: Annotated[
        dict[str, JSON],
        Field(
            description='The input, as the plugin\'s `input_schema` says; bytes are `{"$bytes": "<base64>"}`',
            examples=[{"text": "hello"}],
        ),
    ]


@with_config(TEXT)
class ListQuery(TypedDict):
    """Filters and place of a list of jobs."""

    status: NotRequired[JobStatus]
    plugin: NotRequired[PluginName]
    tag: NotRequired[Tag]
    error_type: NotRequired[ErrorTypeName]
    created_after: NotRequired[Moment]
    created_before: NotRequired[Moment]
    limit: NotRequired[Annotated[int, Field(ge=1, le=MAX_PAGE, default=50)]]
    cursor: NotRequired[Annotated[str, Field(description="`next` of the page before"), PAGE_CURSOR]]


@with_config(TEXT)
class WaitQuery(TypedDict):
    """How long an answer may be held back."""

    wait: NotRequired[
        Annotated[
            float,
            Field(ge=0, le=MAX_WAIT_S, allow_inf_nan=False, description="Seconds to wait for the end of the job"),
        ]
    ]


@with_config(TEXT)
class PointerQuery(TypedDict):
    """Which bytes are meant."""

    pointer: NotRequired[
        Annotated[
            str,
            Field(description="JSON Pointer of one bytes value: it is sent raw"),
            TextForm("(/([^/~]|~[01])*)*", "must be a JSON Pointer (RFC 6901), such as /image or /pages/0"),
        ]
    ]


@with_config(TEXT)
class NoQuery(TypedDict):
    """No parameters."""


ConditionalHeaders = TypedDict(
    "ConditionalHeaders",
    {
        "If-None-Match": NotRequired[
            Annotated[str, Field(description="An `ETag` that is known: 304 while it is the same", examples=['"none"'])]
        ]
    },
)
_Prefer = Annotated[str, Field(description=f"`wait=N`: hold the answer up to N seconds (at most {MAX_WAIT_S})")]

SubmitHeaders = TypedDict(
    "SubmitHeaders", {"Idempotency-Key": NotRequired[IdempotencyKey], "Prefer": NotRequired[_Prefer]}
)


class PutHeaders(TypedDict):
    """Headers of a submission whose id is its key."""

    Prefer: NotRequired[_Prefer]


KeyHeaders = TypedDict("KeyHeaders", {"Idempotency-Key": NotRequired[IdempotencyKey]})

#: Headers whose value is a list.
_LISTS: Final = frozenset({"If-None-Match", "Prefer"})
_job: Final = TypeAdapter[JobInput](JobInput)
_options: Final = TypeAdapter[OptionsInput](OptionsInput)
#: Options whose text in a query is JSON, and what they must be; the others are text, and `tags` may be repeated.
_JSON_OPTIONS: Final[Mapping[str, str]] = {
    "priority": "must be an integer",
    "timeout_s": "must be a number",
    "max_attempts": "must be an integer",
    "metadata": "must be a JSON object",
    "webhook": "must be a JSON object",
}


def check_job(value: Any) -> Submitted:
    """A job as a JSON body; raises a 422 problem."""
    job = _checked(_job, value, "/", unacceptable)
    return Submitted(
        plugin=job["plugin"], payload=job["payload"], options=job_options(job, "/"), payload_pointer="/payload"
    )


def check_options(value: Any, root: str) -> JobOptions:
    """The options in a JSON value; raises a 422 problem. `root` is what stands before their names in its places."""
    return job_options(_checked(_options, value, root, unacceptable), root)


def check_body(adapter: TypeAdapter[Any], value: Any, pointer: str = "") -> Any:
    """A JSON body, or what stands in it at `pointer`, as `adapter` types it; raises a 422 problem naming every field
    that does not fit.
    """
    return _checked(adapter, value, f"{pointer}/", unacceptable)


def check_plugin_name(name: str) -> str:
    """`name` of a form; raises a 422 problem."""
    _checked(_PLUGIN_NAME, name, "/plugin/", unacceptable)
    return name


_PLUGIN_NAME: Final = TypeAdapter[str](PluginName)


def split_query(query: MultiMapping[str]) -> tuple[dict[str, str], JobOptions]:
    """The payload fields and the `job.`-prefixed options in a query; raises a 400 or 422 problem."""
    fields: dict[str, str] = {}
    options: dict[str, Any] = {}
    for name in dict.fromkeys(query):
        values = query.getall(name)
        option = name.removeprefix(OPTION_PREFIX) if name.startswith(OPTION_PREFIX) else None
        if option == "tags":
            options[option] = values
        elif len(values) > 1:
            raise _given_twice(name)
        elif option is None:
            fields[name] = values[0]
        elif option in _JSON_OPTIONS:
            options[option] = _option_value(name, values[0], _JSON_OPTIONS[option])
        else:
            options[option] = values[0]
    return fields, check_options(options, QUERY_ROOT) if options else JobOptions()


def _option_value(name: str, text: str, must_be: str) -> Any:
    try:
        return strict_json.parse(text.encode(errors="surrogatepass"))
    except strict_json.MalformedJSONError as error:
        # Who sends a number thinks of no JSON.
        message = f"{must_be}: {error}" if text.lstrip().startswith(("{", "[")) else must_be
        raise bad_request(
            "A query parameter is not acceptable.", FieldProblem(f"/{escape_pointer(name)}", message)
        ) from error


def _given_twice(name: str) -> Problem:
    return bad_request(
        "A query parameter is not acceptable.", FieldProblem(f"/{escape_pointer(name)}", "the parameter is given twice")
    )


def check_query(adapter: TypeAdapter[Any], query: MultiMapping[str]) -> Any:
    """`query` as `adapter` types it; raises a 400 problem for an unknown, repeated or unfit parameter."""
    for name in query:
        if len(query.getall(name)) > 1:
            raise _given_twice(name)
    return _checked(adapter, dict(query), "/", _bad_query)


def check_headers(adapter: TypeAdapter[Any], names: Sequence[str], headers: MultiMapping[str]) -> Any:
    """Those of `names` that `headers` have, as `adapter` types them; raises a 400 problem.

    Lines of a header that is a list are one list (RFC 9110, 5.3); any other may have one line.
    """
    given = {}
    for name in names:
        if name in headers:
            lines = headers.getall(name)
            if len(lines) > 1 and name not in _LISTS:
                raise _bad_header("", FieldProblem(f"/{name}", "the header is given twice"))
            given[name] = ", ".join(lines)
    return _checked(adapter, given, "/", _bad_header) if given else given


def refuse_key(headers: MultiMapping[str], why: str) -> None:
    """Raise a 400 problem for an `Idempotency-Key` where it would not be kept to."""
    if "Idempotency-Key" in headers:
        raise _bad_header("", FieldProblem("/Idempotency-Key", f"is not taken here: {why}"))


def _bad_query(_: str, *errors: FieldProblem) -> Problem:
    return bad_request("A query parameter is not acceptable.", *errors)


def _bad_header(_: str, *errors: FieldProblem) -> Problem:
    return bad_request("A header is not acceptable.", *errors)


def _checked(adapter: TypeAdapter[Any], value: Any, root: str, refusal: Callable[..., Problem]) -> Any:
    """`value` as `adapter` types it. `root` is what stands before the first name of a place in it."""
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        problems = [_field_problem(detail, root) for detail in error.errors(include_url=False, include_input=False)]
        raise refusal(
            "; ".join(f"{place.pointer or 'The body'}: {place.message}" for place in problems[:3]), *problems
        ) from None


def _field_problem(detail: ErrorDetails, root: str) -> FieldProblem:
    steps = "/".join(escape_pointer(str(step)) for step in detail["loc"])
    return FieldProblem(root + steps if detail["loc"] else root[:-1], misfits.message(detail))


def job_options(options: OptionsInput, root: str) -> JobOptions:
    """The service's form of options that were checked one by one; raises a 422 problem for what no job can keep to.

    `root` is what stands before their names in its place.
    """
    run_at, expires_at = options.get("run_at"), options.get("expires_at")
    if run_at is not None and expires_at is not None and expires_at < run_at:
        place = FieldProblem(f"{root}expires_at", "must not be before run_at: the job could never start")
        raise unacceptable(f"{place.pointer}: {place.message}", place)
    tags = options.get("tags")
    webhook = options.get("webhook")
    return JobOptions(
        priority=options.get("priority", 0),
        run_at=_timestamp(run_at),
        expires_at=_timestamp(expires_at),
        timeout_s=options.get("timeout_s"),
        max_attempts=options.get("max_attempts"),
        tags=tuple(tags) if tags else (),
        metadata=options.get("metadata") or {},
        webhook=None if webhook is None else JobWebhook(url=webhook["url"], events=_events(webhook.get("events"))),
    )


def _events(checked: Sequence[WebhookEvent] | None) -> tuple[str, ...] | None:
    return None if checked is None else tuple(dict.fromkeys(checked))


def job_query(query: ListQuery) -> JobQuery:
    """The service's form of the filters of a list."""
    return dataclasses.replace(filter_query(query, query.get("limit", 50)), after=query.get("cursor"))


def filter_query(conditions: Mapping[str, Any], limit: int) -> JobQuery:
    """The service's form of a filter."""
    return JobQuery(
        status=conditions.get("status"),
        plugin=conditions.get("plugin"),
        tag=conditions.get("tag"),
        error_type=conditions.get("error_type"),
        created_after=_timestamp(conditions.get("created_after")),
        created_before=_timestamp(conditions.get("created_before")),
        limit=limit,
    )


def _timestamp(checked: str | None) -> Timestamp | None:
    return None if checked is None else Timestamp(checked)


_WAIT: Final = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,9})\"?\s*(?=[,;]|$)", re.IGNORECASE | re.ASCII)


def preferred_wait_s(prefer: str | None) -> int | None:
    """The seconds of `Prefer: wait=N` (RFC 7240), capped; None without one. Unknown preferences are ignored."""
    match = _WAIT.search(prefer) if prefer else None
    return min(int(match[1]), MAX_WAIT_S) if match else None


@dataclasses.dataclass(slots=True, kw_only=True)  # not frozen: that would make each five times as dear
class Submitted:
    """A submission as it was sent: `payload_pointer` and `plugin_pointer` tell where its parts stand in the body.

    See `JobRequest` for `payload` and `bind`. `plugin_pointer` is None where the plugin stands in the path.
    `options_root` is what stands before the names of options in their places. `apart` are fields of the payload that
    do not stand at `payload_pointer`, with what stands before them.
    """

    plugin: str
    payload: Mapping[str, Any]
    options: JobOptions
    bind: Callable[[], Awaitable[Mapping[str, Any]]] | None = None
    payload_pointer: str = ""
    plugin_pointer: str | None = "/plugin"
    options_root: str = "/"
    apart: Mapping[str, str] = dataclasses.field(default_factory=dict)
    idempotency_key: str | None = None

    def request(self, *, idempotency_key: str | None = None, job_id: str | None = None) -> JobRequest:
        """The service's form of it."""
        return JobRequest(
            plugin=self.plugin,
            payload=self.payload,
            options=self.options,
            bind=self.bind,
            idempotency_key=self.idempotency_key or idempotency_key,
            id=job_id,
        )

    def place(self, error: ServiceError) -> Exception:
        """`error` with its places as they are in the body."""
        match error:
            case PluginNotFoundError() if self.plugin_pointer is not None:
                return in_body(error, self.plugin_pointer)
            case PayloadInvalidError():
                return PayloadInvalidError(error.plugin, [self._below(problem) for problem in error.problems])
            case NotStorableError():
                place = self._below(error.problem)
                return NotStorableError(place.pointer, place.message)
            case WebhookUrlError():
                return WebhookUrlError(self.options_root + error.problem.pointer[1:], error.problem.message)
            case _:
                return error

    def _below(self, problem: FieldProblem) -> FieldProblem:
        field = problem.pointer[1:].partition("/")[0]
        return FieldProblem(self.apart.get(field, self.payload_pointer) + problem.pointer, problem.message)
