"""The plugin `ocr`: printed text on a picture."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from service.plugins.builtin.extras import not_installed
from service.plugins.builtin.pictures import Picture, on_paper, upright, without_alpha
from service.plugins.context import Context

if TYPE_CHECKING:
    from PIL import Image

# Importing them takes seconds, looking for them none: the manifest must come fast and still name what is missing.
for _library in ("numpy", "onnxruntime", "rapidocr"):
    if importlib.util.find_spec(_library) is None:
        raise not_installed("ocr", ModuleNotFoundError(f"No module named {_library!r}", name=_library))

# One worker is one job: more jobs at once are more workers, and they share the cores.
_THREADS = 1


class Ocr:
    """Reads printed text, Latin and Chinese, on a picture."""

    version = "1.0.0"
    timeout_s = 120
    setup_timeout_s = 120
    memory_mb = 2_000

    def setup(self) -> None:
        """Load the models, which come inside the package: nothing is fetched."""
        import numpy  # late for the reason given above
        from rapidocr import RapidOCR

        logging.getLogger("RapidOCR").setLevel(logging.ERROR)
        self._read: Callable[..., Any] = RapidOCR(
            params={
                "Global.log_level": "error",
                "EngineConfig.onnxruntime.intra_op_num_threads": _THREADS,
                "EngineConfig.onnxruntime.inter_op_num_threads": _THREADS,
            }
        )
        # The library loads each model when it first needs it; that belongs here, not into the first job's time.
        self._read(numpy.full((64, 64, 3), 255, numpy.uint8), use_det=False)
        self._read(numpy.full((64, 64, 3), 255, numpy.uint8), use_det=True)

    def run(
        self,
        image: Picture,
        context: Context,
        min_score: Annotated[float, Field(ge=0, le=1, description="Leave out lines read with less confidence")] = 0.5,
    ) -> dict[str, Any]:
        """Lines in reading order, each with its confidence and the four corners `[x, y]` of its box, clockwise.

        Pixels are those of the upright picture. A picture without text is a result with none; its confidence is None.
        """
        picture = without_alpha(upright(image))
        context.progress(0.1, f"reading {picture.width} x {picture.height} pixels")
        found = self._read(_squarer(picture).convert("RGB"), text_score=min_score)
        lines = [
            {
                "text": text,
                "score": round(float(score), 4),
                "box": [[min(round(float(x)), picture.width), min(round(float(y)), picture.height)] for x, y in box],
            }
            for text, score, box in zip(*_columns(found), strict=True)
        ]
        context.progress(1.0, f"{len(lines)} lines read")
        return {
            "text": "\n".join(line["text"] for line in lines),
            "lines": lines,
            "confidence": round(sum(line["score"] for line in lines) / len(lines), 4) if lines else None,
            "width": picture.width,
            "height": picture.height,
        }


def _squarer(picture: Image.Image) -> Image.Image:
    """`picture` on white paper that is at most four times as long as wide.

    The models want a shortest side of 736 pixels: a strip of 1 x 500 would be blown up to 270 megapixels.
    """
    width, height = picture.size
    return on_paper(picture, (max(width, -(-height // 4)), max(height, -(-width // 4))))


def _columns(found: Any) -> tuple[Any, Any, Any]:
    return ((), (), ()) if found.boxes is None else (found.txts, found.scores, found.boxes)
