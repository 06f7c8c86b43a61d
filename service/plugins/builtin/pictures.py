"""Pictures as arguments: bytes that arrive decoded, upright and of a bearable size, or are refused as bad input."""

from __future__ import annotations

import io
from typing import Annotated, Any, Final

from pydantic import PlainValidator, WithJsonSchema

from service.plugins.builtin.extras import not_installed
from service.plugins.payload import BYTES_SCHEMA

try:
    from PIL import Image, ImageOps
except ModuleNotFoundError as error:
    raise not_installed("image", error) from error

MAX_PIXELS: Final = 40_000_000
MAX_FRAMES: Final = 1_000

#: Only formats whose decoders are small, or fuzzed for years; none that starts another program, as EPS does.
FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")


def decode(data: Any) -> Image.Image:
    """The first frame of the picture in `data`, fully decoded. `format` and `n_frames` are as in the file.

    Raises `ValueError`, for the eyes of whoever sent it, where `data` is not bytes, not a complete picture in one of
    `FORMATS`, or has more than 40 megapixels (seen in its header, before decoding) or 1,000 frames.
    """
    if not isinstance(data, bytes):
        raise ValueError("must be bytes")
    # Pillow's own limit warns first and names no size; the check below comes before any decoding and is stricter.
    Image.MAX_IMAGE_PIXELS = None
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:
        raise ValueError(f"is not a picture that can be read ({', '.join(FORMATS)})") from error
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"has {width} x {height} pixels; at most {MAX_PIXELS // 1_000_000} megapixels are accepted")
    try:
        frames = getattr(picture, "n_frames", 1)
        if frames <= MAX_FRAMES:
            picture.seek(0)
            picture.load()
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"is a damaged or incomplete {picture.format} picture: {error}") from error
    if frames > MAX_FRAMES:
        raise ValueError(f"has {frames} frames; at most {MAX_FRAMES} are accepted")
    return picture


def upright(picture: Image.Image) -> Image.Image:
    """`picture` as the camera meant it: turned by its EXIF orientation, where that can be read."""
    try:
        return ImageOps.exif_transpose(picture)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - damaged EXIF is common, of any kind, and says nothing about the pixels
        return picture


def without_alpha(picture: Image.Image) -> Image.Image:
    """`picture` as 8-bit grey or RGB; what is transparent becomes white."""
    if has_alpha(picture):
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    if picture.mode.startswith("I;16"):
        # Pillow clips 16-bit grey where it should scale it.
        return picture.point(lambda value: value / 256).convert("L")
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB")


def on_paper(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """`picture` in the top left corner of white paper of `size`."""
    paper = Image.new(picture.mode, size, "white")
    paper.paste(picture)
    return paper


def has_alpha(picture: Image.Image) -> bool:
    """True where some of the picture may be transparent."""
    return picture.has_transparency_data


#: A bytes field of the payload that reaches `run` as a decoded picture.
Picture = Annotated[Image.Image, PlainValidator(decode), WithJsonSchema(dict(BYTES_SCHEMA))]
