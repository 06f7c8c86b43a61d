"""The plugin `thumbnail`: a small picture of a picture."""

from __future__ import annotations

import dataclasses
import io
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from service.plugins.builtin.extras import not_installed
from service.plugins.builtin.pictures import Picture, has_alpha, upright, without_alpha

try:
    from PIL import Image, ImageOps
except ModuleNotFoundError as error:
    raise not_installed("image", error) from error

Side = Annotated[int, Field(ge=1, le=4_096)]

_SAVE: Final[dict[str, dict[str, Any]]] = {
    "jpeg": {"optimize": True, "progressive": True},
    "png": {"optimize": True},
    "webp": {"method": 4},
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Thumb:
    """A file: the encoded thumbnail, its media type and its size in pixels."""

    image: bytes
    mime_type: str
    width: int
    height: int


class Thumbnail:
    """Makes a small picture: all of it inside width x height, or cut to fill it."""

    version = "1.0.0"
    timeout_s = 60
    memory_mb = 1_000

    def run(
        self,
        image: Picture,
        width: Side = 256,
        height: Side = 256,
        fit: Annotated[
            Literal["contain", "cover"],
            Field(description="contain: the whole picture, never enlarged; cover: cut to fill"),
        ] = "contain",
        format: Annotated[
            Literal["auto", "jpeg", "png", "webp"],
            Field(description="auto: png where there is transparency, else jpeg"),
        ] = "auto",
        quality: Annotated[int, Field(ge=1, le=100, description="Of jpeg and webp")] = 85,
    ) -> Thumb:
        """Scale the picture, turned upright first; its metadata does not get into the thumbnail."""
        kind = format if format != "auto" else "png" if has_alpha(image) else "jpeg"
        small = upright(image)
        keeps_alpha = kind != "jpeg" and has_alpha(small)
        small = small.convert("RGBA") if keeps_alpha else without_alpha(small)
        if fit == "cover":
            small = ImageOps.fit(small, (width, height))
        else:
            small.thumbnail((width, height), reducing_gap=3.0)
        stripped = Image.new(small.mode, small.size)
        stripped.paste(small)
        encoded = io.BytesIO()
        stripped.save(encoded, kind, **_SAVE[kind], **({} if kind == "png" else {"quality": quality}))
        return Thumb(image=encoded.getvalue(), mime_type=f"image/{kind}", width=small.width, height=small.height)
