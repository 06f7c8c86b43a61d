"""What a call of the API is: its policy, what it takes, how it answers; it is routed, checked and described by that."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Literal

from aiohttp import hdrs, web
from pydantic import TypeAdapter

from service.api import bodies, inputs
from service.api.access import Policy
from service.api.handlers import Arguments
from service.api.problems import unsupported_media_type
from service.api.services import Services

Handler = Callable[[Services, web.Request, Arguments], Awaitable[web.StreamResponse]]
#: A type, or JSON Schema as it stands.
Schema = type | Mapping[str, Any]

#: Stands for every media type that has no entry of its own.
ANY: Final = "*/*"
JSON_TYPE: Final = "application/json"
NDJSON_TYPE: Final = "application/x-ndjson"
EVENT_STREAM: Final = "text/event-stream"
#: The headers of an answer that may be a file.
FILE: Final = ("Content-Disposition",)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """A kind of request body: how it is read, its schema, and examples of it by name."""

    read: Callable[[Services, web.Request], Awaitable[Any]]
    schema: Schema
    examples: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def json_body(shape: type, **examples: Any) -> Body:
    """A JSON body that is read strictly and checked against `shape`; the handler gets the typed value.

    What is not JSON is a 400 problem, what does not fit a 422 one.
    """
    adapter = TypeAdapter[Any](shape)

    async def read(services: Services, request: web.Request) -> Any:
        value = await bodies.parse_json(await bodies.read(request, services.max_body_bytes))
        return inputs.check_body(adapter, value)

    return Body(read=read, schema=shape, examples=examples)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer that is no problem: what it means, and its content by media type; none for 204 and 304.

    `leads_to` says which resources it names: the path of each, `/v1/jobs/{job_id}`, with the runtime expression of
    OpenAPI that finds its last parameter, `$response.body#/id`. Every call at or below such a path becomes a link.
    """

    description: str
    content: Mapping[str, Schema] = dataclasses.field(default_factory=dict)
    headers: Sequence[str] = ()
    leads_to: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One call. `policy` says whose it is; there is no default.

    `query` None means that the bodies read the query themselves. `problems` are the error statuses that do not follow
    from the rest: what the method, the policy, a body or a path parameter may be answered is known without them.
    """

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    name: str
    summary: str
    handler: Handler
    policy: Policy
    answers: Mapping[int, Answer]
    description: str = ""
    problems: Sequence[int] = ()
    query: type | None = inputs.NoQuery
    headers: type | None = None
    bodies: Mapping[str, Body] = dataclasses.field(default_factory=dict)
    body_optional: bool = False  # a request without one is taken; the handler then gets None

    @property
    def path_parameters(self) -> Sequence[str]:
        """The names in braces, in their order."""
        return _PARAMETER.findall(self.path)

    @property
    def answers_head(self) -> bool:
        """Whether HEAD is answered too: where GET is, unless that streams without an end."""
        streams = any(EVENT_STREAM in answer.content for answer in self.answers.values())
        return self.method == hdrs.METH_GET and not streams

    def endpoint(self, services: Services) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """The aiohttp handler of this route."""
        query_adapter = TypeAdapter[Any](self.query) if self.query else None
        header_adapter = TypeAdapter[Any](self.headers) if self.headers else None
        header_names = tuple(self.headers.__annotations__) if self.headers else ()

        async def endpoint(request: web.Request) -> web.StreamResponse:
            caller = await services.gate.admit(request, self.policy)
            query = inputs.check_query(query_adapter, request.query) if query_adapter and request.query_string else {}
            headers = inputs.check_headers(header_adapter, header_names, request.headers) if header_adapter else {}
            submitted = await self._submitted(services, request) if self.bodies else None
            arguments = Arguments(caller=caller, query=query, headers=headers, submitted=submitted)
            return await self.handler(services, request, arguments)

        return endpoint

    async def _submitted(self, services: Services, request: web.Request) -> Any:
        if self.body_optional and not request.body_exists:
            return None
        return await self._body_of(request).read(services, request)

    def _body_of(self, request: web.Request) -> Body:
        media_type, charset = _content_type(request.headers.get(hdrs.CONTENT_TYPE, ""))
        body = self.bodies.get(media_type) or self.bodies.get(ANY)
        if body is None:
            raise unsupported_media_type(
                f"{media_type or 'A body without Content-Type'} is not taken here: send {' or '.join(self.bodies)}."
            )
        if media_type in _UTF_8_ONLY and charset not in ("utf-8", "utf8", "us-ascii"):
            raise unsupported_media_type("JSON is taken in UTF-8 only.")
        return body


_PARAMETER: Final = re.compile(r"{(\w+)}")
_UTF_8_ONLY: Final = frozenset({JSON_TYPE, NDJSON_TYPE})


@functools.lru_cache(maxsize=64)
def _content_type(header: str) -> tuple[str, str]:
    return bodies.media_type(header), bodies.parameters(header).get("charset", "utf-8").lower()
