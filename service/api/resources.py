"""Bytes that are the same for everybody and seldom change: pages, their files, the description of the API."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from aiohttp import ETag, hdrs, web

#: The files of the interactive documentation, and whose they are: `swagger-ui/` is taken over as published.
_FILES: Final[Mapping[str, tuple[str, str]]] = {
    "docs.html": ("docs.html", "text/html"),
    "docs.css": ("docs.css", "text/css"),
    "docs.js": ("docs.js", "text/javascript"),
    "address.js": ("address.js", "text/javascript"),
    "answers.js": ("answers.js", "text/javascript"),
    "descriptions.js": ("descriptions.js", "text/javascript"),
    "forms.js": ("forms.js", "text/javascript"),
    "keys.js": ("keys.js", "text/javascript"),
    "refresh.js": ("refresh.js", "text/javascript"),
    "streams.js": ("streams.js", "text/javascript"),
    "page.css": ("page.css", "text/css"),
    "swagger-ui.css": ("swagger-ui/swagger-ui.css", "text/css"),
    "swagger-ui-bundle.js": ("swagger-ui/swagger-ui-bundle.js", "text/javascript"),
}
#: By their names in the address.
FILE_NAMES: Final = tuple(_FILES)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """A body with its type, and a tag that is another one for other bytes."""

    body: bytes
    media_type: str
    tag: str

    @classmethod
    def of(cls, body: bytes, media_type: str) -> Resource:
        """The resource that `body` is."""
        return cls(body=body, media_type=media_type, tag=hashlib.sha256(body).hexdigest()[:32])


def read_files() -> dict[str, Resource]:
    """Every file of the package's assets by its name in the address; blocks while it reads."""
    folder = importlib.resources.files("service.api") / "assets"
    return {name: Resource.of((folder / path).read_bytes(), media_type) for name, (path, media_type) in _FILES.items()}


def response(request: web.Request, resource: Resource, headers: Mapping[str, str] | None = None) -> web.Response:
    """`resource`, or 304 if the client has it. It may be kept, but must be asked for again each time."""
    known = request.if_none_match or ()
    is_known = any(tag.value in (resource.tag, "*") for tag in known)
    answer = web.Response(status=HTTPStatus.NOT_MODIFIED, headers=headers) if is_known else _whole(resource, headers)
    answer.etag = ETag(resource.tag)
    answer.headers[hdrs.CACHE_CONTROL] = "no-cache"
    return answer


def _whole(resource: Resource, headers: Mapping[str, str] | None) -> web.Response:
    charset = "utf-8" if resource.media_type.startswith("text/") else None
    return web.Response(body=resource.body, content_type=resource.media_type, charset=charset, headers=headers)
