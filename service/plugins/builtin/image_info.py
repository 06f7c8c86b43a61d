"""The plugin `image_info`: what a picture is."""

from __future__ import annotations

import dataclasses

from service.plugins.builtin.pictures import Picture, has_alpha, upright


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """Width and height in pixels, as seen after turning the picture by its EXIF orientation."""

    format: str
    width: int
    height: int
    mode: str
    has_alpha: bool
    frames: int
    dpi: list[float] | None


class ImageInfo:
    """Tells format, size, colour mode and frames of a picture."""

    version = "1.0.0"
    timeout_s = 30
    memory_mb = 1_000

    def run(self, image: Picture) -> Info:
        """Measure the picture; nothing of it is changed."""
        width, height = upright(image).size
        dpi = image.info.get("dpi")
        return Info(
            format=str(image.format),
            width=width,
            height=height,
            mode=image.mode,
            has_alpha=has_alpha(image),
            frames=getattr(image, "n_frames", 1),
            dpi=[round(float(value), 2) for value in dpi] if dpi else None,
        )
