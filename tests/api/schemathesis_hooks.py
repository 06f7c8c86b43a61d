"""What schemathesis has to know of this service beside the description."""

from __future__ import annotations

import schemathesis
from schemathesis.core.transport import Response


@schemathesis.deserializer(
    "text/yaml", "text/x-yaml", "text/vnd.yaml", "text/yml", "application/yaml", "application/x-yaml"
)
def any_bytes(_: object, response: Response) -> str:
    """The service says nothing in YAML: what has this type is a file that somebody sent, and may be no YAML at all."""
    return response.content.decode("latin-1")
