"""Documents with bytes in them, on their way into the database and out again: bytes go by content, references stay."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from service.codec import BLOB_KEY, decode, encode, escape_pointer, is_small, off_loop, plain_text, replace_marked
from service.db.blobs import BlobStore, NewBlob
from service.models import Artifact, BlobRef, StoredArtifact


class Documents:
    """Turns documents into what is stored, and back; beside the event loop where they are large."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    async def store(self, document: dict[str, Any]) -> tuple[str, dict[str, Any], list[NewBlob]]:
        """A document with references in place of bytes, as text and as it is, and the bytes, ready to be inserted."""
        if is_small(document):
            with contextlib.suppress(TypeError):  # bytes: nothing else can be left to stop the encoder
                return encode(document), document, []
        found = await off_loop(document, lambda: list(_bytes_in(document, "")))
        if not found:
            return await off_loop(document, encode, document), document, []
        blobs = await self._blobs.prepare([value for _, value in found])
        mime_type = document.get("mime_type")
        refs = iter(
            BlobRef(sha256=blob.sha256, size=blob.size, media_type=mime_type)
            if isinstance(mime_type, str) and (len(found) == 1 or pointer == "/image")
            else BlobRef(sha256=blob.sha256, size=blob.size)
            for (pointer, _), blob in zip(found, blobs, strict=True)
        )

        def referenced() -> tuple[str, dict[str, Any]]:
            text = encode(document, lambda _: {BLOB_KEY: dataclasses.asdict(next(refs))})
            return text, decode(text)

        return *await off_loop(document, referenced), blobs

    async def store_artifacts(self, artifacts: Sequence[Artifact]) -> tuple[list[StoredArtifact], list[NewBlob]]:
        """Files of a plugin as their record names them, and their bytes, ready to be inserted."""
        if not artifacts:
            return [], []
        blobs = await self._blobs.prepare([artifact.data for artifact in artifacts])
        stored = [
            StoredArtifact(
                name=artifact.name,
                blob=BlobRef(sha256=blob.sha256, size=blob.size, media_type=artifact.media_type),
            )
            for artifact, blob in zip(artifacts, blobs, strict=True)
        ]
        return stored, blobs

    async def with_bytes(self, *documents: Mapping[str, Any] | None) -> list[dict[str, Any] | None]:
        """Copies of stored documents with bytes in place of references."""
        texts = list(map(plain_text, documents))
        if None not in texts:
            return [decode(text) for text in texts if text is not None]
        refs: list[BlobRef] = []

        def replaced(replace: Callable[[Any], Any]) -> list[Any]:
            return [replace_marked(document, BLOB_KEY, replace) for document in documents]

        await off_loop(documents, replaced, lambda ref: refs.append(BlobRef(**ref)))
        stored = await self._blobs.read(refs)
        return await off_loop(documents, replaced, lambda ref: stored[ref["sha256"]])


def _bytes_in(value: Any, pointer: str) -> Iterator[tuple[str, bytes]]:
    """Every bytes value with its JSON Pointer, in the order in which the encoder meets them."""
    if type(value) is bytes:
        yield pointer, value
    elif isinstance(value, (dict, list)):
        items: Iterable[tuple[str | int, Any]] = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _bytes_in(item, f"{pointer}/{escape_pointer(str(key))}")
