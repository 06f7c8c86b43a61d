"""Makes the example pictures: prints text and codes, then bends, shades and soils the prints as a camera would.

`python examples/make_pictures.py [FOLDER]` writes `page.png`, `label.png`, `photo.jpg` and `expected.json` (what is on
them). The same seed makes the same pictures; nothing but this script went into them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import zxingcpp
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SEED = 20_260_401

PAGE = [
    (44, "Harbour Instruments Ltd"),
    (24, "12 Lighthouse Road, Port Ellen"),
    (24, ""),
    (34, "Invoice 2026-0417"),
    (24, "Date: 1 April 2026"),
    (24, ""),
    (28, "2 Brass barometers\t180.00"),
    (28, "1 Tide clock\t95.50"),
    (28, "5 Signal lamps\t212.25"),
    (24, ""),
    (34, "Total due: 487.75 EUR"),
    (24, "Thank you for your order."),
]
WORDS = ["Harbour Instruments", "Lighthouse Road", "2026-0417", "barometers", "Tide clock", "487.75"]

CODES = [
    ("QRCode", "https://example.com/parcel/4711"),
    ("EAN13", "4006381333931"),
    ("Code128", "PARCEL-2026-0042"),
]


def page(random: np.random.Generator) -> Image.Image:
    """A printed letter, photographed at an angle under a lamp."""
    sheet = Image.new("L", (900, 620), 250)
    draw, top = ImageDraw.Draw(sheet), 40
    for size, text in PAGE:
        left, _, right = text.partition("\t")
        draw.text((60, top), left, font=ImageFont.load_default(size), fill=25)
        draw.text((840, top), right, font=ImageFont.load_default(size), fill=25, anchor="ra")
        top += round(size * 1.35)
    draw.line((60, 268, 840, 268), fill=120, width=2)
    return soil(bend(sheet, random, wave=2.0, tilt=0.02), random, shade=50, noise=3.0)


def label(random: np.random.Generator) -> Image.Image:
    """A parcel's label with three codes, crumpled and dusty."""
    sheet = Image.new("L", (760, 560), 245)
    draw = ImageDraw.Draw(sheet)
    draw.text((40, 25), "PARCEL", font=ImageFont.load_default(40), fill=30)
    draw.rectangle((15, 12, 745, 548), outline=60, width=3)
    for (kind, text), place, scale in zip(CODES, [(50, 95), (360, 150), (60, 390)], [7, 3, 3], strict=True):
        code = zxingcpp.create_barcode(text, getattr(zxingcpp.BarcodeFormat, kind))
        printed = Image.fromarray(np.asarray(code.to_image(scale=scale)))
        sheet.paste(printed.resize((printed.width, 130)) if kind != "QRCode" else printed, place)
    return soil(bend(sheet, random, wave=2.5, tilt=0.03), random, shade=60, noise=5.0)


def photo(random: np.random.Generator) -> Image.Image:
    """A coast at sunset: sky, sun, hills and water."""
    width, height = 1_280, 960
    y, x = np.mgrid[0:height, 0:width]
    sky = np.stack([235 - y * 0.10, 170 - y * 0.06, 120 + y * 0.10], axis=-1)
    sun = np.exp(-((x - 860) ** 2 + (y - 380) ** 2) / 9_000)[..., None] * np.array([60, 80, 40])
    scene = sky + sun
    for base, swing, colour in ((520, 60, (96, 84, 122)), (580, 40, (66, 62, 98)), (640, 25, (40, 46, 70))):
        ridge = base + swing * sum(
            np.sin(x[0] / stretch + random.uniform(0, 6)) / order for order, stretch in ((1, 170), (2, 60), (4, 19))
        )
        scene[y > ridge[None, :]] = colour
    water = y > 700
    ripple = np.sin(y / 3.0 + 3 * np.sin(x / 90.0)) * 10
    scene[water] = (np.array([150, 110, 110]) - (y[water] - 700)[:, None] * 0.25) + ripple[water][:, None]
    scene += random.normal(0, 2.0, scene.shape)
    return Image.fromarray(scene.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.8))


def bend(sheet: Image.Image, random: np.random.Generator, *, wave: float, tilt: float) -> Image.Image:
    """`sheet` on a dark table, seen at an angle (`tilt`, of its size) and wavy (`wave`, in pixels)."""
    width, height = sheet.size
    table = Image.new("L", (width + 80, height + 80), 70)
    table.paste(sheet, (40, 40))
    pixels = np.asarray(table, dtype=float)
    y, x = np.mgrid[0 : pixels.shape[0], 0 : pixels.shape[1]].astype(float)
    a, b, phase = (*random.uniform(-tilt, tilt, 2), random.uniform(0, 6))
    across, down = x / pixels.shape[1] - 0.5, y / pixels.shape[0] - 0.5
    source_x = x + pixels.shape[1] * (a * down + 0.5 * tilt * across * down) + wave * np.sin(y / 90 + phase)
    source_y = y + pixels.shape[0] * (b * across + 0.5 * tilt * across * down) + wave * np.sin(x / 120 + phase)
    return Image.fromarray(_sample(pixels, source_x, source_y).astype(np.uint8))


def _sample(pixels: np.ndarray[Any, Any], x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """`pixels` at fractional places, bilinearly."""
    x, y = x.clip(0, pixels.shape[1] - 1.001), y.clip(0, pixels.shape[0] - 1.001)
    left, top = x.astype(int), y.astype(int)
    right_part, low_part = x - left, y - top
    upper = pixels[top, left] * (1 - right_part) + pixels[top, left + 1] * right_part
    lower = pixels[top + 1, left] * (1 - right_part) + pixels[top + 1, left + 1] * right_part
    return np.asarray(upper * (1 - low_part) + lower * low_part)


def soil(sheet: Image.Image, random: np.random.Generator, *, shade: float, noise: float) -> Image.Image:
    """`sheet` slightly out of focus, lit from one corner, with grain; in 16 greys, as small as a scan should be."""
    pixels = np.asarray(sheet.filter(ImageFilter.GaussianBlur(0.7)), dtype=float)
    y, x = np.mgrid[0 : pixels.shape[0], 0 : pixels.shape[1]]
    light = 1 - shade / 255 * (x / pixels.shape[1] + y / pixels.shape[0]) / 2
    pixels = pixels * light + random.normal(0, noise, pixels.shape)
    return Image.fromarray(((pixels.clip(0, 255) // 16) * 17).astype(np.uint8)).quantize(16)


def main(folder: Path) -> None:
    """Write the pictures and what is on them into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    page(np.random.default_rng(SEED)).save(folder / "page.png", optimize=True)
    label(np.random.default_rng(SEED)).save(folder / "label.png", optimize=True)
    scene = photo(np.random.default_rng(SEED))
    # As a camera held upright stores it: lying on its side, with a note how to turn it.
    exif = Image.Exif()
    exif[0x0112] = 6
    scene.transpose(Image.Transpose.ROTATE_90).save(folder / "photo.jpg", quality=82, exif=exif)
    expected = {
        "page.png": {"words": WORDS},
        "label.png": {"codes": [{"format": kind, "text": text} for kind, text in CODES]},
        "photo.jpg": {"width": scene.width, "height": scene.height},
    }
    (folder / "expected.json").write_text(json.dumps(expected, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "pictures")
