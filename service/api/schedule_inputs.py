"""What requests may say of schedules."""

from __future__ import annotations

from typing import Annotated, Final, NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from service.api.inputs import STRICT, WHOLE, MaxAttempts, Metadata, Moment, PluginName, Priority, Tags, TimeoutS
from service.api.problems import unacceptable
from service.api.text_forms import TextForm
from service.errors import FieldProblem
from service.models import JSON, Timestamp
from service.schedule_models import Misfire, ScheduleDefinition, ScheduleOptions, Timing

MAX_EVERY_S: Final = 366 * 86_400

_ONE_TIMING: Final[dict[str, JSON]] = {"oneOf": [{"required": ["cron"]}, {"required": ["every_s"]}]}


@with_config(STRICT)
class ScheduleOptionsInput(TypedDict):
    """Options of the jobs that a schedule makes."""

    priority: NotRequired[Priority]
    timeout_s: NotRequired[TimeoutS]
    max_attempts: NotRequired[MaxAttempts]
    tags: NotRequired[Tags]
    metadata: NotRequired[Metadata]
    expires_after_s: NotRequired[
        Annotated[float, Field(gt=0, le=1e9, description="A job may not start later than this after its tick")]
    ]


@with_config(ConfigDict(**STRICT, json_schema_extra=_ONE_TIMING))
class ScheduleInput(TypedDict):
    """Jobs to be made by the clock; exactly one of `cron` and `every_s` says when."""

    name: Annotated[
        str,
        Field(
            description="Yours alone: no two schedules have one",
            examples=["nightly"],
        ),
        TextForm(
            "[0-9A-Za-z][0-9A-Za-z._@ -]{0,99}",
            "must be of 1 to 100 letters, digits, spaces and . _ @ -, and begin with a letter or digit",
        ),
    ]
    plugin: Annotated[PluginName, Field(examples=["echo"])]
    payload: Annotated[
        dict[str, JSON],
        Field(description="The input of every job, as a submission has it", examples=[{"text": "hello"}]),
    ]
    cron: NotRequired[
        Annotated[
            str,
            Field(
                description="Minute, hour, day of month, month, day of week; or `@hourly`, `@daily` and the like",
                examples=["30 2 * * MON-FRI"],
            ),
            TextForm("[ -~]{1,200}", "must be of 1 to 200 printable ASCII characters"),
        ]
    ]
    every_s: NotRequired[
        Annotated[
            int,
            Field(ge=1, le=MAX_EVERY_S, description="Seconds from tick to tick, counted from `starts_at` or now"),
            WHOLE,
        ]
    ]
    timezone: NotRequired[
        Annotated[
            str,
            Field(
                description="Whose clock `cron` reads: a name of the IANA list",
                default="UTC",
                examples=["Europe/Berlin"],
            ),
            TextForm("[0-9A-Za-z_+/-]{1,100}", "must be a name of the IANA list, such as Europe/Berlin"),
        ]
    ]
    misfire: NotRequired[
        Annotated[
            Misfire,
            Field(strict=False, description="What becomes of ticks that were missed", default=Misfire.ONCE),
        ]
    ]
    starts_at: NotRequired[Annotated[Moment, Field(description="No tick is before")]]
    ends_at: NotRequired[Annotated[Moment, Field(description="No tick is after")]]
    options: NotRequired[ScheduleOptionsInput]


def definition(given: ScheduleInput) -> ScheduleDefinition:
    """The service's form of a schedule; raises a 422 problem for fields that do not go together."""
    if ("cron" in given) == ("every_s" in given):
        raise unacceptable(
            "Exactly one of cron and every_s says when.",
            *(FieldProblem(f"/{name}", "give this or the other one") for name in ("cron", "every_s")),
        )
    starts_at, ends_at = given.get("starts_at"), given.get("ends_at")
    if starts_at is not None and ends_at is not None and ends_at < starts_at:
        raise unacceptable("/ends_at: is before starts_at", FieldProblem("/ends_at", "is before starts_at"))
    options = given.get("options", {})
    return ScheduleDefinition(
        name=given["name"],
        plugin=given["plugin"],
        payload=given["payload"],
        timing=Timing(
            cron=given.get("cron"),
            every_s=given.get("every_s"),
            timezone=given.get("timezone", "UTC"),
            misfire=given.get("misfire", Misfire.ONCE),
            starts_at=None if starts_at is None else Timestamp(starts_at),
            ends_at=None if ends_at is None else Timestamp(ends_at),
        ),
        options=ScheduleOptions(
            priority=options.get("priority", 0),
            timeout_s=options.get("timeout_s"),
            max_attempts=options.get("max_attempts"),
            tags=tuple(options.get("tags", ())),
            metadata=options.get("metadata", {}),
            expires_after_s=options.get("expires_after_s"),
        ),
    )
