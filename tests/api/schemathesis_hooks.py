"""What schemathesis has to know of this service beside the description."""

from __future__ import annotations

import orjson
import schemathesis
from schemathesis.core.transport import Response


@schemathesis.serializer("application/x-ndjson")
def lines(_: object, value: object) -> bytes:
    """Text is taken for lines, as the example is; anything else is one."""
    return value.encode() if isinstance(value, str) else orjson.dumps(value)


@schemathesis.deserializer(
    "text/yaml", "text/x-yaml", "text/vnd.yaml", "text/yml", "application/yaml", "application/x-yaml"
)
def any_bytes(_: object, response: Response) -> str:
    """The service says nothing in YAML: what has this type is a file that somebody sent, and may be no YAML at all."""
    return response.content.decode("latin-1")
