"""Every kind of problem the API answers with: the one table behind titles, their pages, and the documents."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

#: Where the page of a kind is; also the `type` of its problems.
PATH: Final = "/problems"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProblemType:
    """A kind of problem, for people: what it means, what to do, and a `detail` it may come with.

    `statuses` are those it is answered with. `members` of an example stand beside the ones that every problem has.
    """

    kind: str
    statuses: Sequence[int]
    title: str
    meaning: str
    remedy: str
    detail: str
    members: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def example(self) -> dict[str, Any]:
        """A problem of this kind, as it is answered."""
        return {
            "type": url(self.kind),
            "title": self.title,
            "status": self.statuses[0],
            "detail": self.detail,
            "request_id": "0198f6c2-7c1e-7d3a-9b60-3f1d2a4c5e6f",
            **self.members,
        }


def url(kind: str) -> str:
    """Where the page of `kind` is."""
    return f"{PATH}/{kind}"


def _at(pointer: str, message: str) -> dict[str, Any]:
    return {"errors": [{"pointer": pointer, "message": message}]}


_TYPES: Final = (
    ProblemType(
        kind="malformed-request",
        statuses=(400,),
        title="Malformed request",
        meaning="The request is not HTTP, or a header, a query parameter or a part of a form is unknown, given twice, "
        "or not of its form.",
        remedy="Correct the place that `errors` names; without `errors`, what `detail` says. The same request will be "
        "refused again.",
        detail="A query parameter is not acceptable.",
        members=_at("/limit", "must be at most 500"),
    ),
    ProblemType(
        kind="malformed-json",
        statuses=(400,),
        title="Malformed JSON",
        meaning="The body is not JSON as this service reads it: UTF-8, no key twice, no NaN, integers of at most 64 "
        "bits, at most 64 levels and 100,000 values.",
        remedy="Correct the place that `errors` names.",
        detail="/payload/a: the key is given twice",
        members=_at("/payload/a", "the key is given twice"),
    ),
    ProblemType(
        kind="unauthenticated",
        statuses=(401,),
        title="No valid API key",
        meaning="The call asks for an API key, and there was none, or one that is unknown, expired or revoked.",
        remedy="Send a key as `Authorization: Bearer jsk_…`. Whoever runs the service makes one with "
        "`jobservice keys create`.",
        detail="Send an API key of this service, as `Authorization: Bearer jsk_…`.",
    ),
    ProblemType(
        kind="forbidden",
        statuses=(403,),
        title="Not for this key",
        meaning="The key is valid, but has none of the roles that the call asks for.",
        remedy="Use a key with the role that `detail` names.",
        detail="This call asks for a key with the role submit; this one has read.",
    ),
    ProblemType(
        kind="foreign-origin",
        statuses=(403,),
        title="Request from a foreign page",
        meaning="A page of another site tried to change something here with a visitor's browser. That is never taken.",
        remedy="Call the service from a program, or from a page of its own origin.",
        detail="Pages of 'https://elsewhere.example' may not send POST requests here.",
    ),
    ProblemType(
        kind="unknown-route",
        statuses=(404,),
        title="Nothing at this address",
        meaning="The service has no such path.",
        remedy="Compare the path with `/openapi.json` or `/docs`.",
        detail="There is no GET /v1/jobz here; /docs shows what there is.",
    ),
    ProblemType(
        kind="unknown-job",
        statuses=(404,),
        title="Unknown job",
        meaning="There is no job of this id. A job of another tenant does not exist for you, either.",
        remedy="Take the id from the answer to the submission, and the key of the same tenant.",
        detail="There is no job 0198f6c2-7c1e-7d3a-9b60-000000000000.",
    ),
    ProblemType(
        kind="unknown-schedule",
        statuses=(404,),
        title="Unknown schedule",
        meaning="There is no schedule of this id. A schedule of another tenant does not exist for you, either.",
        remedy="Take the id from `GET /v1/schedules`, with the key of the same tenant.",
        detail="There is no schedule 0198f6c2-7c1e-7d3a-9b60-000000000000.",
    ),
    ProblemType(
        kind="unknown-file",
        statuses=(404,),
        title="Unknown file",
        meaning="The job or schedule is there, but has no such artifact, or no bytes at that place.",
        remedy="Follow the `links` and `url`s of the job's record.",
        detail="Job 0198f6c2-7c1e-7d3a-9b60-3f1d2a4c5e6f has no file '/image'.",
    ),
    ProblemType(
        kind="unknown-event",
        statuses=(400,),
        title="Unknown event",
        meaning="The event behind which a stream was to be resumed has not happened: the job has fewer, or the "
        "database was put back to an older copy since that event was heard.",
        remedy="Resume behind an event of this very stream, or leave `Last-Event-ID` away. The beginning is `0`, of "
        "all jobs `0-0`.",
        detail="Job 0198f6c2-7c1e-7d3a-9b60-3f1d2a4c5e6f has 3 events: there is no event 9 to resume behind.",
    ),
    ProblemType(
        kind="unknown-plugin",
        statuses=(404, 422),
        title="Unknown plugin",
        meaning="No plugin of this name is installed: 404 where the path names it, 422 where the body does.",
        remedy="Ask `GET /v1/plugins` for the names.",
        detail="No plugin 'thumbnial' is installed.",
    ),
    ProblemType(
        kind="unknown-batch",
        statuses=(404,),
        title="Unknown batch",
        meaning="There is no batch of this id, or it is another tenant's, or all its jobs were deleted.",
        remedy="Take the `batch_id` of the answer to the batch, or of a job's record.",
        detail="There is no batch 0198f6c2-7c1e-7d3a-9b60-3f1d2a4c5e6f.",
    ),
    ProblemType(
        kind="unknown-webhook",
        statuses=(404,),
        title="Unknown webhook",
        meaning="There is no webhook of this id, or it is another tenant's.",
        remedy="`GET /v1/webhooks` lists yours.",
        detail="There is no webhook 0198f6c2-7c1e-7d3a-9b60-3f1d2a4c5e6f.",
    ),
    ProblemType(
        kind="unknown-delivery",
        statuses=(404,),
        title="Unknown delivery",
        meaning="The webhook has no delivery of this id.",
        remedy="`GET /v1/webhooks/{webhook_id}/deliveries` lists them. Those of a deleted job go with it.",
        detail="There is no delivery 0198f6c2-7c1e-7d3a-9b60-3f1d2a4c5e6f of this webhook.",
    ),
    ProblemType(
        kind="wrong-method",
        statuses=(405,),
        title="Wrong method",
        meaning="The path exists, but not for this method.",
        remedy="Use one of those in the header `Allow`.",
        detail="There is no PUT /v1/jobs here, but GET, HEAD and POST.",
    ),
    ProblemType(
        kind="not-acceptable",
        statuses=(406,),
        title="No such form of the answer",
        meaning="A report was asked for in a form that there is not: `Accept` names none of those it has, or it is "
        "Parquet, and the service runs without the extra for it.",
        remedy="Ask for one of the forms in `detail`. For Parquet, have `pip install 'jobservice[parquet]'` run where "
        "the service is.",
        detail="Reports come as application/json, text/csv, application/x-ndjson or application/vnd.apache.parquet.",
    ),
    ProblemType(
        kind="body-timeout",
        statuses=(408,),
        title="The body stopped arriving",
        meaning="The request promised a body that did not come, or came too slowly. Nothing was recorded.",
        remedy="Send it again, with an `Idempotency-Key` to be safe.",
        detail="The body arrives too slowly: 65536 bytes, and it has not ended.",
    ),
    ProblemType(
        kind="wrong-state",
        statuses=(409,),
        title="Not in this state",
        meaning="The job, or the webhook, is not in a state in which this can be done: what has ended cannot be "
        "cancelled.",
        remedy="Look at its record: the `status` of a job, whether a webhook is enabled.",
        detail="Job 0198f6c2-7c1e-7d3a-9b60-3f1d2a4c5e6f is SUCCESS: it cannot be cancelled.",
    ),
    ProblemType(
        kind="plugin-paused",
        statuses=(409,),
        title="The plugin is paused",
        meaning="Whoever runs the service has paused the plugin, new jobs included. No job was made.",
        remedy="Send the request again when the plugin is back: `control` of `GET /v1/plugins/{name}` tells.",
        detail="Plugin 'ocr' is paused and takes no jobs: its model is being replaced",
    ),
    ProblemType(
        kind="report-window-open",
        statuses=(409,),
        title="The window is not over",
        meaning="A window of a report is to end at a time after which more jobs may still come into it. What was given "
        "out now would not be all of it.",
        remedy="Leave `until` away: the answer says where the window ends, and the next one begins there. Or wait.",
        detail="The window is not over: more may come after 2026-01-31T12:00:00.000Z.",
        members=_at("/until", "must not be later than the reports are"),
    ),
    ProblemType(
        kind="schedule-exists",
        statuses=(409,),
        title="The name is taken",
        meaning="There is a schedule of this name already.",
        remedy="Choose another name, or change the schedule that there is with `PUT /v1/schedules/{schedule_id}`.",
        detail="There is a schedule 'nightly' already.",
    ),
    ProblemType(
        kind="too-many-schedules",
        statuses=(409,),
        title="Too many schedules",
        meaning="The tenant has as many schedules as it may.",
        remedy="Delete one that is no longer needed.",
        detail="There are 1000 schedules, and no more may be: delete one first.",
    ),
    ProblemType(
        kind="bytes-gone",
        statuses=(410,),
        title="The bytes are not kept any more",
        meaning="The job has bytes at that place, or needs them to be tried again, but they were kept for as long as "
        "the service keeps them: its retention removed them.",
        remedy="Send them again, in a new job. Waiting does not help.",
        detail="The bytes 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 are not kept any more.",
    ),
    ProblemType(
        kind="bytes-lost",
        statuses=(410,),
        title="The bytes are lost",
        meaning="The job or schedule has bytes at that place, and they are to be kept, but the file that held them is "
        "not where the service put it: somebody removed it, or a backup came back without it.",
        remedy="Send them again, in a new job: the service then has them for the old ones too. Tell whoever runs the "
        "service, whose log names the file. Waiting does not help.",
        detail="The bytes 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 are lost: the service has "
        "no file of them any more. Send them again.",
    ),
    ProblemType(
        kind="job-cancelled",
        statuses=(409,),
        title="The job was cancelled",
        meaning="The result of a job was asked for that ended without one.",
        remedy="Submit the job anew if its result is still wanted.",
        detail="Job 0198f6c2-7c1e-7d3a-9b60-3f1d2a4c5e6f was cancelled: no result.",
    ),
    ProblemType(
        kind="too-large",
        statuses=(413,),
        title="The body is too large",
        meaning="The body has more bytes than `JOBSERVICE_MAX_BODY_MB` allows, or a form more than 64 parts. It is "
        "told while the body is read, and the connection is closed.",
        remedy="Send less, or have the limit raised.",
        detail="The body is larger than 64000000 bytes.",
    ),
    ProblemType(
        kind="unsupported-media-type",
        statuses=(415,),
        title="Not a body that is taken here",
        meaning="The `Content-Type`, its charset or the `Content-Encoding` of the body is not one this call takes.",
        remedy="Send one of the types that `detail` names, as it is: not compressed, JSON in UTF-8.",
        detail="text/plain is not taken here: send application/json or multipart/form-data.",
    ),
    ProblemType(
        kind="foreign-host",
        statuses=(421,),
        title="Not this service's host",
        meaning="The header `Host` names a host that this service does not answer for; so no foreign name can be made "
        "to lead browsers here.",
        remedy="Use the address that the service listens on, or have the proxy in front of it send that.",
        detail="This service does not answer for the host 'elsewhere.example'.",
    ),
    ProblemType(
        kind="invalid-content",
        statuses=(422,),
        title="A field does not fit",
        meaning="The body is well-formed, but a field is missing, unknown or out of its range.",
        remedy="Correct the places that `errors` names.",
        detail="/priority: must be at most 100",
        members=_at("/priority", "must be at most 100"),
    ),
    ProblemType(
        kind="invalid-payload",
        statuses=(422,),
        title="The payload does not fit the plugin",
        meaning="The payload is not what the plugin's `input_schema` says. No job was made.",
        remedy="Correct the places that `errors` names; `GET /v1/plugins/{name}` shows the schema.",
        detail="The payload does not fit plugin 'thumbnail'.",
        members=_at("/payload/width", '"wide" is not of type "integer"'),
    ),
    ProblemType(
        kind="idempotency-key-reused",
        statuses=(422,),
        title="The idempotency key was used before",
        meaning="The `Idempotency-Key` had made another job, from another request.",
        remedy="Take a new key for a new job. To repeat a request, send exactly the same one.",
        detail="This Idempotency-Key was used before with a different request.",
    ),
    ProblemType(
        kind="job-id-reused",
        statuses=(422,),
        title="The job's id is taken",
        meaning="The id was used before with a different request. No job was made.",
        remedy="Choose another id (UUIDv7), or send the request that it was used with.",
        detail="The id 0198f6c2-7c1e-7d3a-9b60-3f1d2a4c5e6f was used before with a different request.",
    ),
    ProblemType(
        kind="batch-refused",
        statuses=(422,),
        title="No job of the batch is acceptable",
        meaning="Every item of the batch was refused; `items` tells why, by `index`, with a `problem` of each.",
        remedy="Correct the items. Nothing was recorded.",
        detail="None of the 2 jobs is acceptable.",
    ),
    ProblemType(
        kind="job-failed",
        statuses=(422,),
        title="The job failed",
        meaning="The result of a job was asked for that failed; `error` says why.",
        remedy="Correct what `error` tells, and submit the job anew.",
        detail="Job 0198f6c2-7c1e-7d3a-9b60-3f1d2a4c5e6f failed: not a picture",
        members={
            "error": {
                "type": "ExecutionError",
                "message": "not a picture",
                "plugin": "thumbnail",
                "details": {"exception": "UnidentifiedImageError"},
                "timestamp": "2026-01-31T12:00:00.000Z",
            }
        },
    ),
    ProblemType(
        kind="rate-limited",
        statuses=(429,),
        title="Too many requests",
        meaning="The caller has used up its rate; `RateLimit-Policy` and `RateLimit` tell what it is and what is left.",
        remedy="Wait for the seconds of `Retry-After`.",
        detail="Too many requests: this caller has 10 a second, and 20 at once.",
    ),
    ProblemType(
        kind="queue-full",
        statuses=(429,),
        title="Too many jobs wait",
        meaning="As many jobs wait as may, in all, of the tenant or of the plugin. No job was made.",
        remedy="With `Retry-After`, wait for its seconds and send the request again. Without, it has more jobs than "
        "may ever wait: send fewer at once.",
        detail="The queue is full: 1000 jobs of plugin 'ocr' wait, and 1000 may. Try again later.",
    ),
    ProblemType(
        kind="too-many-streams",
        statuses=(429,),
        title="Too many streams of events",
        meaning="As many streams of events are open as may be, of this caller or of the process.",
        remedy="Close a stream, or wait for the seconds of `Retry-After`. One stream of all jobs replaces many of one.",
        detail="One caller may have 200 streams open at once. Close one, or try again later.",
    ),
    ProblemType(
        kind="internal-error",
        statuses=(500,),
        title="A fault of the service",
        meaning="Something happened that nobody foresaw. It is never the request's fault.",
        remedy="Tell whoever runs the service the `request_id`: the log says more under it.",
        detail="This is a fault of the service; its log tells more under the request id.",
    ),
    ProblemType(
        kind="not-ready",
        statuses=(503,),
        title="Not ready",
        meaning="`/readyz` was asked, and the process cannot take or run jobs now; `errors` has every reason.",
        remedy="Wait, or help where the reasons ask for it.",
        detail="The service is draining.",
        members=_at("", "The service is draining."),
    ),
    ProblemType(
        kind="plugin-unavailable",
        statuses=(503,),
        title="The plugin is not available",
        meaning="The plugin is installed, but still loading, or could not be loaded. No job was made.",
        remedy="With `Retry-After`, wait for its seconds. Without, whoever runs the service has to act on `detail`.",
        detail="Plugin 'ocr' is not available: it is still loading; try again soon",
    ),
    ProblemType(
        kind="unavailable",
        statuses=(503,),
        title="Not now",
        meaning="The service stops, or its database is away. Nothing was changed, unless `detail` says that this "
        "is not known.",
        remedy="Send the request again after the seconds of `Retry-After`, or a few; with the same `Idempotency-Key` "
        "or id no job is made twice.",
        detail="The service is draining.",
    ),
)

#: By kind, in the order of their statuses.
PROBLEM_TYPES: Final[Mapping[str, ProblemType]] = {problem.kind: problem for problem in _TYPES}
