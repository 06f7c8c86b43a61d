"""What requests may say about many jobs at once: batches to submit, and actions on jobs that are there."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Annotated, Any, Final, NotRequired

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, with_config
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from service.api.inputs import (
    STRICT,
    WHOLE,
    ErrorTypeName,
    IdempotencyKey,
    JobInput,
    Moment,
    PluginName,
    Submitted,
    Tag,
    check_body,
    job_options,
)
from service.api.problems import Problem, unacceptable
from service.errors import FieldProblem
from service.job_actions import MAX_JOBS
from service.models import JobStatus, canonical_uuid

MAX_BATCH: Final = 5_000
#: Of a whole batch: 50 values a job.
MAX_BATCH_VALUES: Final = 250_000


def _some(value: Mapping[str, Any]) -> Mapping[str, Any]:
    if not value:
        raise PydanticCustomError("no_condition", "must have a condition: say which jobs are meant")
    return value


@with_config(STRICT)
class BatchItemInput(JobInput):
    """A job of a batch."""

    idempotency_key: NotRequired[IdempotencyKey]


@with_config(STRICT)
class FilterInput(TypedDict):
    """Which jobs are meant; every condition must hold, and there must be one."""

    status: NotRequired[Annotated[JobStatus, Field(strict=False)]]
    plugin: NotRequired[PluginName]
    tag: NotRequired[Tag]
    error_type: NotRequired[ErrorTypeName]
    created_after: NotRequired[Moment]
    created_before: NotRequired[Moment]


@with_config(ConfigDict(**STRICT, json_schema_extra={"oneOf": [{"required": ["ids"]}, {"required": ["filter"]}]}))
class ActionInput(TypedDict):
    """To which jobs something is to be done: `ids`, or a `filter`."""

    ids: NotRequired[Annotated[list[Annotated[str, Field(max_length=100)]], Field(min_length=1, max_length=MAX_JOBS)]]
    filter: NotRequired[Annotated[FilterInput, Field(json_schema_extra={"minProperties": 1}), AfterValidator(_some)]]
    dry_run: NotRequired[Annotated[bool, Field(description="Only tell what would be done", default=False)]]
    limit: NotRequired[
        Annotated[
            int,
            Field(ge=1, le=MAX_JOBS, default=MAX_JOBS, description="The most jobs of a filter"),
            WHOLE,
        ]
    ]


_item: Final = TypeAdapter[BatchItemInput](BatchItemInput)
_action: Final = TypeAdapter[ActionInput](ActionInput)


def check_batch(values: Any) -> list[Submitted | Problem]:
    """The items of a batch, each as a job or as the 422 problem it has; raises one for what is no batch."""
    if type(values) is not list or not 1 <= len(values) <= MAX_BATCH:
        message = f"must be an array of 1 to {MAX_BATCH} jobs"
        raise unacceptable(f"The body {message}.", FieldProblem("", message))
    return [_check_item(value, f"/{index}") for index, value in enumerate(values)]


def _check_item(value: Any, pointer: str) -> Submitted | Problem:
    try:
        item = check_body(_item, value, pointer)
        options = job_options(item, f"{pointer}/")
    except Problem as problem:
        return problem
    return Submitted(
        plugin=item["plugin"],
        payload=item["payload"],
        options=options,
        payload_pointer=f"{pointer}/payload",
        plugin_pointer=f"{pointer}/plugin",
        options_root=f"{pointer}/",
        idempotency_key=item.get("idempotency_key"),
    )


def check_action(value: Any) -> ActionInput:
    """What is to be done to many jobs; raises a 422 problem."""
    action: ActionInput = check_body(_action, value)
    if ("ids" in action) is ("filter" in action):
        message = "exactly one of 'ids' and 'filter' is needed"
        raise unacceptable(f"The body: {message}.", FieldProblem("", message))
    return action


def check_chosen_id(text: str) -> str:
    """The id of a client's choice, as it is written here; raises a 422 problem unless it is a UUIDv7."""
    canonical = canonical_uuid(text)
    if canonical is None or uuid.UUID(canonical).version != 7:
        message = "must be a UUID of version 7 (RFC 9562)"
        raise unacceptable(f"The id of the job {message}.", FieldProblem("/job_id", message))
    return canonical
