"""The plugin `barcode`: every one- and two-dimensional code on a picture."""

from __future__ import annotations

from typing import Any

from service.plugins.builtin.extras import not_installed
from service.plugins.builtin.pictures import Picture, upright, without_alpha

try:
    import zxingcpp
except ModuleNotFoundError as error:
    raise not_installed("barcode", error) from error

_CORNERS = ("top_left", "top_right", "bottom_right", "bottom_left")


class Barcode:
    """Reads every barcode on a picture: QR, Data Matrix, Aztec, PDF417, EAN, UPC, Code 128 and more."""

    version = "1.0.0"
    timeout_s = 60
    memory_mb = 1_000

    def run(self, image: Picture) -> dict[str, Any]:
        """The codes in reading order; a picture without any is a result with none.

        A position is the four corners `[x, y]` in pixels of the upright picture, clockwise from the code's top left.
        """
        picture = without_alpha(upright(image)).convert("L")
        codes = [_code(barcode) for barcode in zxingcpp.read_barcodes(picture)]
        codes.sort(key=lambda code: (code["position"][0][1], code["position"][0][0]))
        return {"codes": codes, "count": len(codes), "width": picture.width, "height": picture.height}


def _code(barcode: Any) -> dict[str, Any]:
    corners = (getattr(barcode.position, corner) for corner in _CORNERS)
    return {
        "format": barcode.format.name,
        "text": barcode.text,
        "position": [[corner.x, corner.y] for corner in corners],
        "orientation": barcode.orientation,
    }
