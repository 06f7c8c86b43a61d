"""What a file is."""

from __future__ import annotations

import mimetypes
import re
from typing import Final

ANY_BYTES: Final = "application/octet-stream"

#: What a file is by its first bytes; they tell the truth more often than its name.
_MAGIC: Final = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
    (re.compile(rb"II\*\0|MM\0\*"), "image/tiff"),
    (re.compile(rb"BM.{4}\0\0\0\0", re.DOTALL), "image/bmp"),
    (re.compile(rb"....ftypavi[fs]", re.DOTALL), "image/avif"),
    (re.compile(rb"....ftyp(hei[cx]|mif1)", re.DOTALL), "image/heic"),
    (re.compile(rb"%PDF-"), "application/pdf"),
    (re.compile(rb"\x1f\x8b\x08"), "application/gzip"),
)


def media_type_of(name: str, data: bytes) -> str:
    """What a file is: by its first bytes where they are known, else by its name, else any bytes."""
    known = next((media_type for magic, media_type in _MAGIC if magic.match(data)), None)
    by_name, packed = mimetypes.guess_type(name)
    # Of a packed file the name tells what is in it, which its bytes are not.
    return known or (None if packed else by_name) or ANY_BYTES
