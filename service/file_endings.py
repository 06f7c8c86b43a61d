"""How the name of a file ends, by what the file is."""

from __future__ import annotations

import mimetypes
from typing import Final

#: What `mimetypes` does not know, or calls by another name, in one of the Python versions or on hosts without a
#: `mime.types`, as most containers are.
_ENDINGS: Final = {
    "application/gzip": ".gz",
    "application/octet-stream": ".bin",
    "application/vnd.apache.parquet": ".parquet",
    "application/x-ndjson": ".ndjson",
    "application/xml": ".xml",
    "application/yaml": ".yaml",
    "audio/wav": ".wav",
    "image/avif": ".avif",
    "image/heic": ".heic",
    "image/jpeg": ".jpg",
    "image/webp": ".webp",
    "text/markdown": ".md",
}
_UNKNOWN: Final = ".bin"


def ending_of(media_type: str) -> str:
    """The ending, with its dot, of files of `media_type`, whose parameters do not count; `.bin` where none is known."""
    kind = media_type.partition(";")[0].strip().lower()
    return _ENDINGS.get(kind) or mimetypes.guess_extension(kind, strict=False) or _UNKNOWN
