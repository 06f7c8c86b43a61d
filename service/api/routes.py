"""The route table: every call of the API once; routing, checks and the OpenAPI document are all made from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from service.api import (
    actions,
    batches,
    bulk_inputs,
    bulk_views,
    controls,
    events,
    handlers,
    inputs,
    pages,
    reports,
    schedules,
    submissions,
    views,
)
from service.api.access import ADMIN, ANY_KEY, OPERATOR_REPORT, PUBLIC, READ, SUBMIT
from service.api.route import ANY, EVENT_STREAM, FILE, JSON_TYPE, NDJSON_TYPE, Answer, Body, Route, Schema
from service.api.webhook_routes import WEBHOOK_ROUTES
from service.job_actions import Action

_RAW_BYTES: Final = {"type": "string", "format": "binary"}
_OBJECT: Final = {"type": "object", "additionalProperties": True}
_FORM: Final = {
    "type": "object",
    "required": ["plugin"],
    "properties": {
        "plugin": {"type": "string", "minLength": 1, "maxLength": 200, "examples": ["echo"]},
        "job": {"$ref": "#/components/schemas/OptionsInput", "examples": [{}]},
        "payload": {**_OBJECT, "examples": [{"text": "hello"}]},
    },
    "additionalProperties": True,
    "description": "Every part that is not reserved is a field of the payload; files are its bytes.",
}
_EXAMPLES: Final[Mapping[str, Mapping[str, Any]]] = {
    "least": {"plugin": "echo", "payload": {"text": "hello"}},
    "bytes": {
        "plugin": "image_info",
        "payload": {"image": {"$bytes": "R0lGODlhAQABAAAAACw="}, "mime_type": "image/gif"},
    },
    "options": {
        "plugin": "echo",
        "payload": {"text": "good night"},
        "priority": 5,
        "run_at": "2100-01-01T00:00:00Z",
        "max_attempts": 3,
        "tags": ["docs"],
        "metadata": {"order": 7},
    },
}
#: What the form of a browser begins with, so it changes nothing yet.
_ACTION_EXAMPLES: Final[Mapping[str, Mapping[str, Any]]] = {
    "filter": {"filter": {"plugin": "echo", "tag": "docs"}, "dry_run": True},
    "ids": {"ids": ["01890a5d-ac96-774b-bcce-b302099a8057"], "dry_run": True},
}
_BATCH_EXAMPLE: Final = [{"plugin": "echo", "payload": {"text": text}} for text in ("hello", "good night")]
_BATCH: Final = {
    "type": "array",
    "minItems": 1,
    "description": f"At most {bulk_inputs.MAX_BATCH} jobs",
    "items": {"$ref": "#/components/schemas/BatchItemInput"},
}
_LINES: Final = {"type": "string", "description": "JSON objects, a line each"}
_JOB: Final = {JSON_TYPE: views.JobView}
_TO_JOB: Final = {"/v1/jobs/{job_id}": "$response.body#/id", "/v1/plugins/{name}": "$response.body#/plugin"}
_ACCEPTED: Final = Answer(
    description="Recorded; follow `Location`",
    content=_JOB,
    headers=("Location", "Idempotency-Replayed", "Preference-Applied"),
    leads_to=_TO_JOB,
)
_ENDED_IN_TIME: Final = Answer(
    description="It ended within `Prefer: wait=N`",
    content=_JOB,
    headers=("Location", "Idempotency-Replayed", "Preference-Applied"),
    leads_to=_TO_JOB,
)
_TAGGED: Final = ("ETag",)
_NOT_MODIFIED: Final = Answer(description="The client has it already", headers=_TAGGED)
_HTML: Final = Answer(description="A page", content={"text/html": {"type": "string"}}, headers=_TAGGED)
_EVENTS: Final = {EVENT_STREAM: events.MessageView}
_DOCUMENT: Final[Mapping[str, Schema]] = {JSON_TYPE: _OBJECT, ANY: _RAW_BYTES}

ROUTES: Final[Sequence[Route]] = (
    Route(
        method="POST",
        path="/v1/jobs",
        name="submit_job",
        summary="Submit a job",
        handler=handlers.submit_job,
        policy=SUBMIT,
        headers=inputs.SubmitHeaders,
        bodies={
            JSON_TYPE: Body(read=submissions.from_json, schema=inputs.JobInput, examples=_EXAMPLES),
            "multipart/form-data": Body(read=submissions.from_form, schema=_FORM),
        },
        answers={200: _ENDED_IN_TIME, 202: _ACCEPTED},
        problems=(409,),
    ),
    Route(
        method="PUT",
        path="/v1/jobs/{job_id}",
        name="put_job",
        summary="Submit a job under an id of your own",
        description="The id is a UUIDv7 and does what a key does: sent again, the same request yields the same job. An "
        "`Idempotency-Key` beside it is not looked at.",
        handler=handlers.put_job,
        policy=SUBMIT,
        headers=inputs.PutHeaders,
        bodies={JSON_TYPE: Body(read=submissions.from_json, schema=inputs.JobInput, examples=_EXAMPLES)},
        answers={200: _ENDED_IN_TIME, 202: _ACCEPTED},
        problems=(409,),
    ),
    Route(
        method="POST",
        path="/v1/jobs/batch",
        name="submit_batch",
        summary="Submit many jobs",
        description="All that are acceptable are recorded in one transaction. With `Idempotency-Key: K`, item i has "
        "the key `K#i` unless it brings its own.",
        handler=batches.submit_batch,
        policy=SUBMIT,
        headers=inputs.KeyHeaders,
        bodies={
            JSON_TYPE: Body(read=batches.read_array, schema=_BATCH, examples={"two": _BATCH_EXAMPLE}),
            NDJSON_TYPE: Body(
                read=batches.read_lines,
                schema=_LINES,
                examples={"two": "".join(f"{json.dumps(job)}\n" for job in _BATCH_EXAMPLE)},
            ),
        },
        answers={
            202: Answer(
                description="The acceptable jobs are recorded; follow `Location`",
                content={JSON_TYPE: bulk_views.BatchSubmissionView},
                headers=("Location", "Idempotency-Replayed"),
                leads_to={"/v1/batches/{batch_id}": "$response.body#/batch_id"},
            )
        },
        problems=(409,),
    ),
    Route(
        method="GET",
        path="/v1/batches/{batch_id}",
        name="get_batch",
        summary="Get how far a batch is, at once or when all its jobs have ended",
        handler=batches.get_batch,
        policy=READ,
        query=inputs.WaitQuery,
        answers={
            200: Answer(
                description="The batch",
                content={JSON_TYPE: bulk_views.BatchView},
                leads_to={"/v1/batches/{batch_id}": "$response.body#/id"},
            )
        },
    ),
    Route(
        method="GET",
        path="/v1/batches/{batch_id}/results",
        name="get_batch_results",
        summary="Get what became of each job of a batch, a line each, in the order of ids",
        handler=batches.get_results,
        policy=READ,
        answers={200: Answer(description="Jobs that have not ended too", content={NDJSON_TYPE: _LINES})},
    ),
    Route(
        method="GET",
        path="/v1/jobs",
        name="list_jobs",
        summary="List jobs, newest first",
        handler=handlers.list_jobs,
        policy=READ,
        query=inputs.ListQuery,
        answers={
            200: Answer(
                description="A page",
                content={JSON_TYPE: views.JobListView},
                headers=("Link",),
                leads_to={"/v1/jobs/{job_id}": "$response.body#/items/0/id"},
            )
        },
    ),
    Route(
        method="GET",
        path="/v1/jobs/{job_id}",
        name="get_job",
        summary="Get a job, at once or when it has ended",
        handler=handlers.get_job,
        policy=READ,
        query=inputs.WaitQuery,
        headers=inputs.ConditionalHeaders,
        answers={
            200: Answer(description="The job, whatever its status", content=_JOB, headers=_TAGGED, leads_to=_TO_JOB),
            304: _NOT_MODIFIED,
        },
    ),
    Route(
        method="GET",
        path="/v1/jobs/{job_id}/events",
        name="follow_job",
        summary="Follow a job as server-sent events, to its end",
        description="Ids are 1, 2, 3 and so on, without a gap.",
        handler=events.job_events,
        policy=READ,
        query=events.JobEventsQuery,
        headers=events.ResumeHeaders,
        answers={
            200: Answer(description="What happened and happens", content=_EVENTS),
            204: Answer(description="It has ended, and you know how"),
        },
    ),
    Route(
        method="GET",
        path="/v1/events",
        name="follow_jobs",
        summary="Follow all jobs as server-sent events",
        description="Ids are places in the order of all events, and not to be read.",
        handler=events.all_events,
        policy=READ,
        query=events.EventsQuery,
        headers=events.ResumeHeaders,
        answers={200: Answer(description="What happens", content=_EVENTS)},
    ),
    Route(
        method="GET",
        path="/v1/jobs/{job_id}/result",
        name="get_result",
        summary="Get the result alone; a result with exactly one bytes value is sent raw unless JSON is preferred",
        handler=handlers.get_result,
        policy=READ,
        query=inputs.PointerQuery,
        answers={
            200: Answer(description="The result", content=_DOCUMENT, headers=FILE),
            202: Answer(
                description="Not ended yet", content={JSON_TYPE: views.JobSummaryView}, headers=("Retry-After",)
            ),
        },
        problems=(409, 410, 422),
    ),
    Route(
        method="GET",
        path="/v1/jobs/{job_id}/payload",
        name="get_payload",
        summary="Get the input alone, or one bytes value of it",
        handler=handlers.get_payload,
        policy=READ,
        query=inputs.PointerQuery,
        answers={200: Answer(description="The input", content=_DOCUMENT, headers=FILE)},
        problems=(410,),
    ),
    Route(
        method="GET",
        path="/v1/jobs/{job_id}/artifacts/{artifact}",
        name="get_artifact",
        summary="Get a file that the plugin made beside its result",
        handler=handlers.get_artifact,
        policy=READ,
        answers={200: Answer(description="The file", content={ANY: _RAW_BYTES}, headers=FILE)},
        problems=(410,),
    ),
    Route(
        method="GET",
        path="/v1/jobs/{job_id}/attempts",
        name="list_attempts",
        summary="List the executions of a job",
        handler=handlers.list_attempts,
        policy=READ,
        answers={200: Answer(description="Oldest first", content={JSON_TYPE: views.AttemptListView})},
    ),
    Route(
        method="POST",
        path="/v1/jobs/{job_id}/cancel",
        name="cancel_job",
        summary="Cancel a job",
        handler=handlers.cancel_job,
        policy=SUBMIT,
        answers={
            200: Answer(description="It is cancelled", content=_JOB, leads_to=_TO_JOB),
            202: Answer(description="It is stopping", content=_JOB, leads_to=_TO_JOB),
        },
        problems=(409,),
    ),
    Route(
        method="POST",
        path="/v1/jobs/{job_id}/retry",
        name="retry_job",
        summary="Try a job that has ended again, as a new job",
        description="The new job has the plugin, payload and options of the old one, its `parent_id`, but no times.",
        handler=actions.retry_job,
        policy=SUBMIT,
        headers=inputs.SubmitHeaders,
        answers={200: _ENDED_IN_TIME, 202: _ACCEPTED},
        problems=(409, 410, 422),
    ),
    Route(
        method="DELETE",
        path="/v1/jobs/{job_id}",
        name="delete_job",
        summary="Delete a job that has ended, with its attempts and events",
        handler=actions.delete_job,
        policy=ADMIN,
        answers={204: Answer(description="It is gone")},
        problems=(409,),
    ),
    *(
        Route(
            method="POST",
            path=f"/v1/jobs/actions/{action}",
            name=f"{action}_jobs",
            summary=f"{action.capitalize()} many jobs, named or found by a filter",
            handler=actions.acting(action),
            policy=ADMIN if action is Action.DELETE else SUBMIT,
            headers=inputs.KeyHeaders if action is Action.RETRY else None,
            bodies={
                JSON_TYPE: Body(read=actions.read_action, schema=bulk_inputs.ActionInput, examples=_ACTION_EXAMPLES)
            },
            answers={200: Answer(description="What became of each job", content={JSON_TYPE: bulk_views.ActionView})},
        )
        for action in Action
    ),
    Route(
        method="GET",
        path="/v1/plugins",
        name="list_plugins",
        summary="List the plugins",
        handler=handlers.list_plugins,
        policy=ANY_KEY,
        answers={
            200: Answer(
                description="Every installed plugin",
                content={JSON_TYPE: views.PluginListView},
                leads_to={"/v1/plugins/{name}": "$response.body#/items/0/name"},
            )
        },
    ),
    Route(
        method="GET",
        path="/v1/plugins/{name}",
        name="get_plugin",
        summary="Get a plugin with its schemas",
        handler=handlers.get_plugin,
        policy=ANY_KEY,
        answers={
            200: Answer(
                description="The plugin",
                content={JSON_TYPE: views.PluginView},
                leads_to={"/v1/plugins/{name}": "$response.body#/name"},
            )
        },
    ),
    Route(
        method="POST",
        path="/v1/plugins/{name}/jobs",
        name="submit_plugin_job",
        summary="Submit a job whose body is the payload",
        handler=handlers.submit_job,
        policy=SUBMIT,
        query=None,
        headers=inputs.SubmitHeaders,
        bodies={
            JSON_TYPE: Body(read=submissions.payload_from_json, schema=_OBJECT),
            ANY: Body(read=submissions.payload_from_bytes, schema=_RAW_BYTES),
        },
        answers={200: _ENDED_IN_TIME, 202: _ACCEPTED},
        problems=(409,),
    ),
    *WEBHOOK_ROUTES,
    *controls.ROUTES,
    *schedules.ROUTES,
    *reports.ROUTES,
    Route(
        method="GET",
        path="/livez",
        name="livez",
        summary="Whether the process answers",
        handler=handlers.livez,
        policy=PUBLIC,
        answers={200: Answer(description="It does", content={JSON_TYPE: views.StateView})},
    ),
    Route(
        method="GET",
        path="/readyz",
        name="readyz",
        summary="Whether the process can take and run jobs",
        handler=handlers.readyz,
        policy=PUBLIC,
        answers={200: Answer(description="It can", content={JSON_TYPE: views.StateView})},
        problems=(503,),
    ),
    Route(
        method="GET",
        path="/metrics",
        name="metrics",
        summary="Metrics of the process",
        handler=handlers.get_metrics,
        policy=OPERATOR_REPORT,
        answers={200: Answer(description="Prometheus' text format", content={"text/plain": {"type": "string"}})},
    ),
    Route(
        method="GET",
        path="/openapi.json",
        name="openapi",
        summary="This document",
        description="With a call for each plugin that is available, for those who may list the plugins.",
        handler=pages.openapi,
        policy=PUBLIC,
        headers=inputs.ConditionalHeaders,
        answers={
            200: Answer(description="OpenAPI 3.1", content={JSON_TYPE: _OBJECT}, headers=_TAGGED),
            304: _NOT_MODIFIED,
        },
    ),
    Route(
        method="GET",
        path="/",
        name="root",
        summary="Be led to the documentation",
        handler=pages.root,
        policy=PUBLIC,
        answers={302: Answer(description="See `/docs`", headers=("Location",))},
    ),
    Route(
        method="GET",
        path="/docs",
        name="docs",
        summary="This document as a page to read and to try",
        handler=pages.docs,
        policy=PUBLIC,
        headers=inputs.ConditionalHeaders,
        answers={200: _HTML, 304: _NOT_MODIFIED},
    ),
    Route(
        method="GET",
        path="/docs/{file}",
        name="docs_file",
        summary="Get a file that the pages load",
        handler=pages.docs_file,
        policy=PUBLIC,
        headers=inputs.ConditionalHeaders,
        answers={
            200: Answer(description="The file", content={ANY: {"type": "string"}}, headers=_TAGGED),
            304: _NOT_MODIFIED,
        },
    ),
    Route(
        method="GET",
        path="/problems",
        name="list_problems",
        summary="Read about every kind of problem",
        handler=pages.list_problems,
        policy=PUBLIC,
        headers=inputs.ConditionalHeaders,
        answers={200: _HTML, 304: _NOT_MODIFIED},
    ),
    Route(
        method="GET",
        path="/problems/{kind}",
        name="get_problem",
        summary="Read what a kind of problem means, and what to do",
        description="The `type` of every problem leads here.",
        handler=pages.get_problem,
        policy=PUBLIC,
        headers=inputs.ConditionalHeaders,
        answers={200: _HTML, 304: _NOT_MODIFIED},
    ),
)
