"""The parts that requests are made of."""

from __future__ import annotations

import base64
import dataclasses
import math
import uuid
from typing import Any
from urllib.parse import quote

from service.client.records import NewJob
from service.codec import BYTES_KEY, decode, encode, escape_pointer
from service.errors import NotStorableError
from service.models import JobOptions, JobWebhook, canonical_uuid


def segment(text: str) -> str:
    """`text` as one segment of a path; TypeError for anything else, as a UUID object."""
    return quote(_text(text), safe="")


def spelled(job_id: str) -> str:
    """`job_id` as the service spells it, who refuses what is none; TypeError for what is no text."""
    return canonical_uuid(_text(job_id)) or job_id


def _text(text: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"ids and names are text, not {type(text).__name__}: give str(...) of it")
    return text


def key(idempotency_key: str | None) -> dict[str, str]:
    """The header that lets a request be repeated without a second effect; a key of its own for None."""
    if idempotency_key == "":
        raise ValueError("idempotency_key is empty: give one, or None for a key of this call alone")
    return {"Idempotency-Key": uuid.uuid4().hex if idempotency_key is None else idempotency_key}


def options_document(options: JobOptions | None) -> dict[str, Any]:
    """Those options that differ from their defaults."""
    if options is None:
        return {}
    if not isinstance(options, JobOptions):
        raise TypeError(f"options are a JobOptions, as JobOptions(priority=5), not {type(options).__name__}")
    if isinstance(options.tags, str):  # which is a sequence of texts, too
        raise TypeError(f"tags are a tuple of texts, as tags=({options.tags!r},), not one text")
    if options.webhook is not None and not isinstance(options.webhook, JobWebhook):
        raise TypeError(f"webhook is a JobWebhook, as JobWebhook(url=...), not {type(options.webhook).__name__}")
    defaults = JobOptions()
    names = [field.name for field in dataclasses.fields(options)]
    given = {name: getattr(options, name) for name in names if getattr(options, name) != getattr(defaults, name)}
    if "tags" in given:
        given["tags"] = list(given["tags"])
    if options.webhook is not None:
        webhook = dataclasses.asdict(options.webhook)
        given["webhook"] = {name: value for name, value in webhook.items() if value is not None}
    return given


def options_query(options: JobOptions | None) -> list[tuple[str, str]]:
    """The same as parameters of a query."""
    query: list[tuple[str, str]] = []
    for name, value in options_document(options).items():
        texts = value if name == "tags" else [plain_text(value, f"/job.{name}")]
        query += [(f"job.{name}", text) for text in texts]
    return query


def plain_text(value: Any, pointer: str = "") -> str:
    """`value`, which stands at `pointer`, as a parameter of a query: text as it is, as times are, all else as JSON."""
    text = json_text(value, pointer)
    return decode(text) if text.startswith('"') else text


def new_job(job: NewJob) -> dict[str, Any]:
    """The document of a job of a batch."""
    keyed = {} if job.idempotency_key is None else {"idempotency_key": job.idempotency_key}
    return {"plugin": job.plugin, "payload": dict(job.payload), **options_document(job.options), **keyed}


def body(document: Any) -> bytes:
    """`document` as JSON, bytes in it in base64. It takes its time for large ones. Raises `NotStorableError`."""
    return json_text(document).encode()


def json_text(document: Any, pointer: str = "") -> str:
    """`document`, which stands at `pointer`, as JSON; raises `NotStorableError` for numbers that JSON does not have."""
    text = encode(document, _marked)
    # The encoder makes null of them.
    if "null" in text:
        _check_finite(document, pointer)
    return text


def _check_finite(value: Any, pointer: str) -> None:
    match value:
        case float() if not math.isfinite(value):
            raise NotStorableError(pointer, "numbers must be finite, not NaN or infinite")
        case dict():
            for key, item in value.items():
                _check_finite(item, f"{pointer}/{escape_pointer(key)}")
        case list() | tuple():
            for index, item in enumerate(value):
                _check_finite(item, f"{pointer}/{index}")


def _marked(data: bytes) -> dict[str, str]:
    return {BYTES_KEY: base64.b64encode(data).decode()}
